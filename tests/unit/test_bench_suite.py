"""Results files, the runner of stages, and the GPU suite in small on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastres.bench import results, suite
from fastres.bench.suite import FAILED, NOT_REACHED, OK, TIMED_OUT, Stage

ROOT = Path(__file__).resolve().parents[2]


def script(code: str):
    return lambda seconds: suite.python("-c", code)


def statuses(rows) -> list[str]:
    return [row["status"] for row in rows]


def test_a_results_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "results.json"
    results.write(path, {"old": 1})

    def dying(source, target):
        assert json.loads(Path(source).read_text()) == {"new": 2}
        assert results.read(path) == {"old": 1}
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        results.write(path, {"new": 2})
    monkeypatch.undo()
    assert results.read(path) == {"old": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_what_is_not_json_leaves_the_file_alone(tmp_path):
    path = tmp_path / "results.json"
    results.write(path, {"old": 1})
    with pytest.raises(TypeError):
        results.write(path, {"new": object()})
    assert results.read(path) == {"old": 1}


def test_infinities_are_text(tmp_path):
    path = tmp_path / "results.json"
    results.write(path, {"error": [float("inf"), float("nan")]})
    assert results.read(path) == {"error": ["inf", "nan"]}


def test_merge_keeps_what_was_not_measured_again(tmp_path):
    path = tmp_path / "results.json"
    results.merge(path, {"a": {"x": 1}, "b": {"x": 2}}, {"date": "monday"})
    results.merge(path, {"b": {"x": 3}}, {"date": "tuesday"})
    found = results.read(path)["cases"]
    assert found["a"] == {"x": 1, "environment": {"date": "monday"}}
    assert found["b"] == {"x": 3, "environment": {"date": "tuesday"}}


def test_a_foreign_file_is_named(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("not json")
    with pytest.raises(ValueError, match=r"results\.json is not a results file"):
        results.read(path)


def test_stages_go_on_after_an_exception_a_crash_and_a_hang(tmp_path):
    stages = [
        Stage("raises", script("raise ValueError('planted')"), 0.5, 1),
        Stage("crashes", script("import os; os.abort()"), 0.5, 1),
        Stage("hangs", script("import time; print('began'); time.sleep(60)"), 0.05, 1),
        Stage("works", script("print('fine')"), 0.5, 1),
    ]
    rows = suite.run(stages, tmp_path, 40, {"fact": 1}, log=lambda line: None)
    assert statuses(rows) == [FAILED, FAILED, TIMED_OUT, OK]
    assert "ValueError: planted" in rows[0]["reason"]
    assert rows[1]["exit_code"] < 0
    assert "began" in (tmp_path / "hangs.log").read_text()
    assert (tmp_path / "works.log").read_text() == "fine\n"
    written = results.read(tmp_path / "suite.json")
    assert written["fact"] == 1
    assert written["stages"] == rows
    assert written["not_reached"] == []


def test_a_stage_that_is_stopped_takes_its_children_along(tmp_path):
    child = "import time, pathlib; time.sleep(3); pathlib.Path('alive').write_text('')"
    code = (
        f"import os, subprocess, sys, time; os.chdir({str(tmp_path)!r}); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    suite.run([Stage("parent", script(code), 1.0, 0.5)], tmp_path, 1.0, {}, log=lambda line: None)
    time.sleep(3.5)
    assert not (tmp_path / "alive").exists()


def test_the_budget_is_kept_and_what_was_not_reached_is_named(tmp_path):
    now = iter([0.0, 0.0, 95.0, 95.0, 95.0])
    stages = [
        Stage("first", script("pass"), 0.5, 1),
        Stage("second", script("pass"), 0.5, 20),
        Stage("third", script("pass"), 0.5, 1),
    ]
    rows = suite.run(stages, tmp_path, 100, {}, clock=lambda: next(now), log=lambda line: None)
    assert statuses(rows) == [OK, NOT_REACHED, OK]
    assert rows[1]["reason"] == "5 s were left, it needs at least 20 s"
    assert results.read(tmp_path / "suite.json")["not_reached"] == ["second"]


def test_a_stage_is_told_less_than_it_has_and_leaves_room_for_the_next(tmp_path):
    told = {}

    def command(name):
        def make(seconds):
            told[name] = seconds
            return suite.python("-c", "pass")

        return make

    stages = [Stage("greedy", command("greedy"), 0.9, 5), Stage("next", command("next"), 0.9, 30)]
    suite.run(stages, tmp_path, 100, {}, clock=lambda: 0.0, log=lambda line: None)
    assert told == {"greedy": 60.0, "next": 80.0}


def test_suite_json_is_there_while_stages_run(tmp_path):
    code = (
        "import json, pathlib; "
        f"found = json.loads(pathlib.Path({str(tmp_path / 'suite.json')!r}).read_text()); "
        "assert [row['status'] for row in found['stages']] == ['ok', 'not reached'], found"
    )
    stages = [Stage("one", script("pass"), 0.5, 1), Stage("two", script(code), 0.5, 1)]
    rows = suite.run(stages, tmp_path, 60, {}, log=lambda line: None)
    assert statuses(rows) == [OK, OK], rows


def test_results_of_an_older_run_do_not_pass_for_new_ones(tmp_path):
    results.write(tmp_path / "dies.json", {"old": 1})
    rows = suite.run(
        [Stage("dies", script("raise SystemExit(3)"), 1.0, 1)], tmp_path, 30, {},
        log=lambda line: None,
    )  # fmt: skip
    assert "results" not in rows[0]
    assert not (tmp_path / "dies.json").exists()


def test_cases_of_all_stages_are_collected_and_none_is_lost(tmp_path):
    results.write(tmp_path / "one.json", {"cases": {"a": 1, "b": 2}, "profiles": {"p": 3}})
    results.write(tmp_path / "two.json", {"cases": {"a": 4}, "largest_batch": {"l": 5}})
    results.write(tmp_path / "versions.json", {"parts": {}})
    (tmp_path / "broken.json").write_text("{")
    found = suite.collect(tmp_path, ["one", "two", "versions", "broken", "not there"])
    assert found == {
        "cases": {"a": 1, "b": 2, "a, two": 4}, "profiles": {"p": 3}, "largest_batch": {"l": 5},
    }  # fmt: skip


def test_a_stage_names_the_cases_that_it_did_not_reach(tmp_path):
    content = {"cases": {}, "sweep": {"not_reached": {"train resnet152": "3 s were left"}}}
    code = f"from pathlib import Path; Path('bench.json').write_text({json.dumps(content)!r})"
    variables = {"FASTRES_PLANTED": "yes"}
    check = "import os; assert os.environ['FASTRES_PLANTED'] == 'yes'; "
    inside = f"import os; os.chdir({str(tmp_path)!r}); {check}{code}"
    stages = [Stage("bench", script(inside), 1.0, 1, environment=variables)]
    (row,) = suite.run(stages, tmp_path, 30, {}, log=lambda line: None)
    assert row["status"] == OK, row
    assert row["cases_not_reached"] == ["train resnet152"]


@pytest.mark.slow
def test_gpu_suite_smoke(tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), "--smoke", "--device", "cpu",
         "--minutes", "8", "--out", str(tmp_path)],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert time.monotonic() - started < 490
    found = results.read(tmp_path / "suite.json")
    assert [row["stage"] for row in found["stages"]] == [
        "versions", "compile", "tests", "resnet50-bf16", "kernels", "tune", "resnet50-tuned",
        "resnet50-fp16", "infer", "profile", "memory", "resnet18-bf16", "peers", "cifar",
        "largest-batch", "operators",
    ]  # fmt: skip
    # on a busy machine the last ones may not be reached, and must then be named
    assert {row["status"] for row in found["stages"]} <= {OK, NOT_REACHED}
    assert found["stages"][0]["status"] == OK
    first = results.read(tmp_path / "resnet50-bf16.json")
    (case,) = first["cases"].values()
    ours = case["implementations"]["fastres"]
    assert ours["status"] == "measured"
    assert case["implementations"]["fastres CUDA graph"]["status"] == "skipped"
    reached = [row["stage"] for row in found["stages"] if "results" in row]
    collected = results.read(tmp_path / "results.json")
    # the tuned step and the peers' have the name of the first one
    assert len(collected["cases"]) >= len([name for name in reached if "resnet" in name])
    if "largest-batch" in reached:
        assert len(collected["largest_batch"]) == 1
