"""Results files of any age and in any state are read, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import bench_files
import pytest

from fastres.bench.report import load
from fastres.bench.report.page import page
from fastres.bench.timing import Summary
from fastres.training.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "benchmarks" / "results" / "amd-epyc-family-26-model-2-2-threads.json"


def test_old_files_tell_kind_model_and_size_by_their_workload():
    cases = {case.name: case for case in load.read([RECORDED]).cases}
    found = cases["cifar resnet20 fp32, malloc keeps memory"]
    assert (found.kind, found.model, found.image_size) == ("train", "resnet20", 32)
    assert (found.note, found.dtype, found.batch) == ("malloc keeps memory", "fp32", 128)
    assert cases["cifar resnet20 fp32"].note == ""
    found = cases["torchvision resnet50 fp32, NCHW script"]
    assert (found.model, found.note) == ("torchvision.resnet50", "NCHW script")
    found = cases["resnet50 bf16 inference, batch 1"]
    assert (found.kind, found.model, found.note) == ("infer", "resnet50", "")
    assert load._note("gpu resnet50 bf16", "train", "resnet50", "bf16", (256, 224)) == ""
    assert cases["bottleneck layer1 bf16"].kind == "block"
    assert {case.kind for name, case in cases.items() if "bn_" in name} == {"op"}


def test_what_fastres_bench_names_its_cases_has_no_note(tmp_path):
    one = bench_files.case()
    name = "train resnet50 fp32, batch 16, 224px"
    cases = {name: one, f"{name}, malloc keeps memory": one}
    cases[f"{name}, SGD"] = {**one, "optimizer": True}
    found = load.read([bench_files.write(tmp_path, {"cases": cases})]).cases
    assert [case.note for case in found] == ["", "malloc keeps memory", ""]
    assert found[2].title == "resnet50 fp32, batch 16, 224×224, SGD"


def test_two_cases_of_one_title_keep_their_names(tmp_path):
    one = bench_files.case()
    cases = {"train resnet50": one, "train resnet50 step": one}
    found = load.read([bench_files.write(tmp_path, {"cases": cases})]).cases
    assert [case.note for case in found] == list(cases)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a results file"),
        ("[1]", "got a list"),
        ('{"plans": 1}', "is not a results file: .* got 'plans'"),
        ("{}", "got an empty one"),
        ('{"cases": []}', r"cases must be an object, got \[\]"),
        ('{"cases": {"a": 1}}', "case 'a' must be an object, got 1"),
        ('{"cases": {"a": {"implementations": {}}}}', "batch of case 'a' must be an integer"),
        ('{"cases": {"a": {"batch": 1}}}', "implementations of case 'a' must be an object"),
        (
            '{"cases": {"a": {"batch": 1, "implementations": {"b": 2}}}}',
            "'b' of case 'a' must be an object",
        ),
        ('{"profiles": {"a": {}}}', "operators of profile 'a' must be a list"),
        ('{"largest_batch": {"a": {}}}', "implementations of largest_batch 'a' must be an object"),
    ],
)
def test_another_file_is_an_error_that_names_it(tmp_path, text, message):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as info:
        load.read([path])
    assert str(path) in str(info.value)


def paths(value, *, depth: int = 7) -> list[tuple]:
    """Where in nested content there is a value; lists by their first element."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1]
    found = []
    for key, item in inside:
        found.append((key,))
        if depth and isinstance(item, dict | list):
            found += [(key, *rest) for rest in paths(item, depth=depth - 1)]
    return found


def test_a_file_with_junk_in_it_is_shown_or_is_an_error_that_says_so(tmp_path):
    content = {
        "cases": bench_files.named(bench_files.case()),
        "profiles": {"a": bench_files.profile()},
        "largest_batch": {"a": bench_files.largest()},
    }
    outcomes = set()
    for path in paths(content):
        for junk in (None, [1], {"a": {}}, "x", -1):
            spoiled = json.loads(json.dumps(content))
            place = spoiled
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            try:
                text = page(load.read([bench_files.write(tmp_path, spoiled)]))
                outcomes.add(text.startswith("<!DOCTYPE html>"))
            except UsageError as error:
                outcomes.add("must be" in str(error) or "expected" in str(error))
    assert outcomes == {True}


def test_the_made_up_files_are_of_the_form_that_is_written():
    """What the tests above read is what `Summary` writes."""
    written = Summary.of([1.0, 2.0, 3.0]).as_dict()
    made = bench_files.run(1.0, 1, None)["seconds"]
    assert set(made) - {"rounds"} <= set(written)
