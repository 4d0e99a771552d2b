"""`fastres report`: what stands in files reaches the page, and nothing else does."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import bench_files
import pytest

from fastres.bench.peers import CONVOLUTIONS, EAGER, EAGER_GRAPH, FUSED, FUSED_GRAPH
from fastres.bench.report import load, select, units
from fastres.bench.report.page import page

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "benchmarks" / "results" / "amd-epyc-family-26-model-2-2-threads.json"
SECTIONS = {
    "Training", "Inference", "Blocks", "Operators", "Memory", "Scaling", "Largest batch",
    "Roofline", "History", "Without a speed", "Environment", "Not in these files",
}  # fmt: skip
VOID = {"meta", "link", "rect", "line", "polyline", "polygon", "circle"}


class Page(HTMLParser):
    """Headings, tables (rows of cells' texts), attributes and whether elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID or tag in ("rect", "circle", "polygon"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td", "h1", "h2", "h3"):
            self._cell = []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.rows[-1].append("".join(self._cell))
        if tag in ("h1", "h2", "h3"):
            self.headings.append("".join(self._cell))

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)


def of(tmp_path: Path, *contents) -> tuple[str, Page]:
    paths = [bench_files.write(tmp_path, one, f"{i}.json") for i, one in enumerate(contents)]
    text = page(load.read(paths))
    return text, Page(text.replace('<meta charset="utf-8">', ""))


@pytest.fixture(scope="module")
def recorded() -> str:
    return page(load.read([RECORDED]))


@pytest.fixture
def full(tmp_path):
    return of(tmp_path, bench_files.everything())


def test_every_section_has_its_figures(full):
    text, parsed = full
    assert set(parsed.headings) & SECTIONS == SECTIONS - {"History", "Not in these files"}
    assert parsed.open == ["html", "body"] or parsed.open == []
    for title in (
        "Training: every implementation", "Inference: every implementation",
        "Residual blocks: fastres", "Fused operators: fastres", "Peak memory of a step",
        "Training over batch: resnet50 fp32, 224×224", "Memory of training over batch",
        "Training over depth: resnets fp32, batch 4", "Training over image size: resnet50 fp32",
        "Roofline: resnet50 bf16, batch 16", "Operators that only move data", "Where the time goes",
    ):  # fmt: skip
        assert title in text
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for _, name, value in parsed.attributes if name == "href" and value[0] == "#"]
    assert {link[1:] for link in links} <= set(ids)
    assert len(links) > 8


def test_the_page_asks_for_nothing_from_outside(full, recorded):
    for text in (full[0], recorded):
        assert "http:" not in text
        assert "https:" not in text
        assert "<script" not in text
        assert " src=" not in text
        assert "@import" not in text
        assert set(re.findall(r"url\((.)", text)) <= {"#"}
        assert "default-src 'none'" in text


def test_pictures_have_words(full):
    _, parsed = full
    svgs = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(svgs) == 2 * 14  # wide and narrow
    assert any("resnet50 fp32, batch 64, 224×224: " in label for label in svgs)
    assert all(label.endswith(".") for label in svgs)


def test_all_numbers_of_the_training_table_are_of_the_file(recorded):
    cases = json.loads(RECORDED.read_text())["cases"]
    parsed = Page(recorded.replace('<meta charset="utf-8">', ""))
    tables = [row for row in parsed.rows if row and row[0] in (EAGER, FUSED)]
    shown = {tuple(row[1:]) for row in tables}
    assert len(tables) == sum(
        name in (EAGER, FUSED) for case in cases.values() for name in case["implementations"]
    )
    for case in cases.values():
        run = case["implementations"][FUSED]
        ratio = run["times_faster_than"][EAGER]
        expected = (
            units.duration(run["seconds"]["median"]),
            f"{ratio['low95']:.2f} to {ratio['high95']:.2f}× noisy"
            if ratio["noisy"]
            else f"{ratio['median']:.2f}× ({ratio['low95']:.2f} to {ratio['high95']:.2f})",
        )
        assert any(expected[0] == row[0] and expected[1] in row for row in shown), expected


def test_the_recorded_file_lacks_what_is_named_as_missing(recorded):
    for name, command in (("Scaling", "--batch 1..64"), ("Roofline", "fastres profile")):
        assert re.search(rf"<li>{name}: <code>[^<]*{re.escape(command)}", recorded)
    assert 'id="roofline"' not in recorded


def test_the_recorded_commands_are_shown(recorded):
    cases = json.loads(RECORDED.read_text())["cases"].values()
    commands = {case["environment"]["command"] for case in cases}
    assert commands
    assert all(f"python {command}" in unescape(recorded) for command in commands)


def test_a_reason_is_text_and_no_markup(full):
    text, _ = full
    assert "<b>conv1" not in text
    assert "gradient of &lt;b&gt;conv1&lt;/b&gt; &amp; more is off" in text
    assert "refused" in text
    assert "the time is up" in text
    assert "JAX is not installed" in text


def test_no_text_of_a_file_becomes_markup(tmp_path):
    """Whatever text a file holds, as a name or as a value, stays text."""
    evil = "\"><script>alert('1')</script>"

    def spoil(value, key=""):
        if isinstance(value, dict):
            kept = ("cases", "profiles", "largest_batch", "implementations")
            return {
                (name + evil if key in kept and name not in (EAGER, FUSED) else name): spoil(
                    item, name
                )
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [spoil(item) for item in value]
        if isinstance(value, str) and key not in ("kind", "status", "type", "workload"):
            return value + evil
        return value

    text, parsed = of(tmp_path, spoil(bench_files.everything()))
    assert "<script" not in text
    assert "alert" in unescape(text)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert len(Page(text.replace('<meta charset="utf-8">', "")).headings) > 8


def test_noise_is_said_and_only_where_it_is(tmp_path):
    quiet, _ = of(tmp_path, {"cases": bench_files.named(bench_files.case())})
    assert 'class="noisy"' not in quiet
    assert "Noisy:" not in quiet
    assert "<pattern" not in quiet
    loud, parsed = of(tmp_path, {"cases": bench_files.named(bench_files.case(noisy=True))})
    assert loud.count('class="noisy">noisy') == 2  # the headline and the table
    assert "Noisy:" in loud
    assert "1.50×" not in loud  # no confident figure
    assert '<span class="value range">1.47 to 1.53×</span>' in loud
    assert ("li", "class", "unsure") in parsed.attributes
    assert "<pattern" in loud
    assert "Striped: noisy." in loud


def test_a_noisy_time_is_a_range_and_a_noisy_point_hollow(tmp_path):
    cases = [bench_files.case(batch=batch) for batch in (1, 4, 16)]
    quiet, _ = of(tmp_path, {"cases": bench_files.named(*cases)})
    assert "Hollow" not in quiet
    seconds = cases[2]["implementations"][FUSED]["seconds"]
    seconds |= {"lower_quartile": 0.010, "upper_quartile": 0.012}
    text, _ = of(tmp_path, {"cases": bench_files.named(*cases)})
    assert "10.0 ms to 12.0 ms a step" in text
    assert "10.7 ms a step" in quiet
    assert "10.7 ms a step" not in text
    assert "Hollow: noisy." in text
    assert text.count('class="hollow stroke-ours"') == 2  # wide and narrow


def test_cuda_graphs_are_compared_with_each_other(tmp_path):
    graph = bench_files.run(0.008, 16, 1.8)
    graph["times_faster_than"][EAGER_GRAPH] = bench_files.ratio(1.4)
    one = bench_files.case(others={FUSED_GRAPH: graph})
    text, _ = of(tmp_path, {"cases": bench_files.named(one)})
    assert "CUDA graphs of both: 1.40× (1.37 to 1.43)" in text
    assert text.count('class="value">1.50×') == 1


def test_a_bound_is_no_competitor(full):
    text, _ = full
    assert "outline-bound" in text
    memory = re.search(r'aria-label="Peak memory[^"]*"', text)[0]
    assert CONVOLUTIONS not in memory
    assert "0.60× eager" in memory


def test_without_the_baseline_there_is_no_ratio(tmp_path):
    one = bench_files.case()
    for name in (FUSED, CONVOLUTIONS):
        one["implementations"][name]["times_faster_than"] = {}
    one["implementations"][EAGER] = {"status": "failed", "reason": "it fell over"}
    text, parsed = of(tmp_path, {"cases": bench_files.named(one)})
    assert "every implementation" not in text
    assert 'class="ratios"' not in text
    assert "it fell over" in text
    assert [row[1] for row in parsed.rows if row[:1] == [FUSED]] == ["10.7 ms"]


def test_a_case_measured_twice_has_a_history(tmp_path):
    cases = [
        bench_files.case(faster=faster, date=date)
        for faster, date in ((1.5, "2026-01-01"), (1.2, "2026-01-03"), (1.19, "2026-01-05"))
    ]
    text, parsed = of(tmp_path, *({"cases": bench_files.named(one)} for one in cases[1::-1]))
    assert "History" in parsed.headings
    assert (
        "1.50× (1.47 to 1.53) before, 1.20× (1.18 to 1.22) now: slower, the intervals do not meet"
        in text
    )
    assert text.count('class="value">1.20×') == 1  # the newest is the headline, alone
    text, _ = of(tmp_path, *({"cases": bench_files.named(one)} for one in cases))
    assert "1.20× (1.18 to 1.22) before, 1.19× (1.17 to 1.21) now: the intervals overlap" in text


def test_conditions_that_change_by_the_minute_are_ranges(tmp_path):
    cases = bench_files.named(*(bench_files.case(batch=batch) for batch in (1, 2, 3)))
    for minute, one in enumerate(cases.values()):
        device = {**bench_files.GPU, "sm_clock": f"{1980 - minute} MHz"}
        told = bench_files.environment(device, f"2026-01-0{2 + minute}")
        one["environment"] = {**told, "load_average": [0.5 * minute, 1.0, 1.0]}
    cases[next(iter(cases))]["environment"]["torch"] = "2.98"
    text, parsed = of(tmp_path, {"cases": cases})
    assert "0.json, 2026-01-02: 1 entry" in parsed.headings
    assert "0.json, 2026-01-03 to 2026-01-04: 2 entries" in parsed.headings
    assert "<dd>2026-01-03T03:04:05+00:00 to 2026-01-04T03:04:05+00:00</dd>" in text
    assert "<dd>0.5 to 1.0, of a minute</dd>" in text
    assert "<dd>1979 MHz, 1978 MHz</dd>" in text
    assert text.count("<pre><code>fastres bench train</code></pre>") == 2


def test_devices_stand_side_by_side(tmp_path):
    gpu = bench_files.named(bench_files.case())
    cpu = bench_files.named(bench_files.case(device=bench_files.CPU, faster=1.25))
    text, parsed = of(tmp_path, {"cases": gpu}, {"cases": cpu})
    assert "History" not in parsed.headings
    assert parsed.headings.count("Made-up GPU") == 3  # headline, training, memory
    assert parsed.headings.count("Made-up CPU, 4 threads") == 3
    assert "1.25×" in text


def test_two_points_are_no_curve(tmp_path):
    cases = [bench_files.case(batch=batch) for batch in (1, 2)]
    text, _ = of(tmp_path, {"cases": bench_files.named(*cases)})
    assert "over batch" not in text
    assert "Scaling: <code>" in text


def test_points_of_a_curve_are_no_bars(full, tmp_path):
    cases = load.read([bench_files.write(tmp_path, bench_files.everything())]).cases
    found = [case for case in cases if case.kind == "train"]
    apart = [(case.model, case.batch) for case in select.apart(found)]
    assert sorted(apart) == [("resnet152", 4), ("resnet18", 4), ("resnet50", 64)]
    rows = [row for row in full[1].rows if row[:1] == [EAGER]]
    assert len(rows) == len(cases) + 1  # the tables have them all; one is of the largest batch


def test_the_largest_batch_and_what_ended_the_search(full):
    rows = {row[0]: row[1:] for row in full[1].rows if len(row) == 4}
    assert rows[EAGER] == ["48", "–", "64: no memory"]
    assert rows[FUSED] == ["≥ 96", "2.00×", "no larger one was tried"]
    assert rows["JAX"] == ["–", "–", "JAX is not installed"]


def test_operators_stand_in_the_roofline_and_in_the_table(full):
    text, parsed = full
    rows = {row[0]: row[1:] for row in parsed.rows}
    assert rows["1 conv3x3"] == [
        "10", "4.00 ms", "40.0%", "4.00 GB", "1.50 Tflop", "800 µs", "20%"
    ]  # fmt: skip
    assert rows["4 argmax"] == ["1", "1.00 ms", "10.0%", "–", "–", "–", "–"]
    assert "1 conv3x3: 375 Tflop/s, 40%" in text
    assert "3 bn_act: 80% of bandwidth, 2.00 ms" in text
    assert "The roof of Made-up GPU: 5.00 TB/s and 1.00 Pflop/s (invented)." in text
    assert "The step took 12.5 ms, without the profiler 11.5 ms." in text
    assert "layer1 9.00 ms, floor 4.00 ms; head 1.00 ms. operators: 1 conv3x3 4.00 ms" in text


def test_without_a_machine_there_is_no_roof(tmp_path):
    one = {**bench_files.profile(), "machine": None}
    text, parsed = of(tmp_path, {"profiles": {"a": one}})
    assert "stroke-roof" not in text.partition("</style>")[2]
    assert "there is no roof" in text
    assert "Roofline" in parsed.headings


def test_infinities_are_no_numbers(tmp_path):
    one = bench_files.case()
    one["implementations"][FUSED]["times_faster_than"][EAGER]["high95"] = "inf"
    one["implementations"][FUSED]["seconds"]["median"] = "nan"
    text, _ = of(tmp_path, {"cases": bench_files.named(one)})
    assert 'class="ratios"' not in text
    assert "nan" not in text.partition("</style>")[2]


def test_memory_measured_for_itself_goes_before_that_of_a_timed_step(tmp_path):
    timed, peaks = bench_files.case(), bench_files.case(kind="memory")
    for name, run in list(peaks["implementations"].items()):
        peak = {EAGER: 2**30, FUSED: 2**29}.get(name)
        kept = {"status": "measured", "memory": {"peak_bytes": peak, "saved_bytes": None}}
        peaks["implementations"][name] = kept if peak else {**run, "status": "skipped"}
    text, parsed = of(tmp_path, {"cases": bench_files.named(timed, peaks)})
    label = re.search(r'aria-label="Peak memory of a step [^"]*"', text)[0]
    assert "fastres 512 MiB, 0.50× eager&#x27;s; eager channels_last 1.00 GiB." in label
    assert any(row[:1] == [FUSED] and "512 MiB" in row for row in parsed.rows)
