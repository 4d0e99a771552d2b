"""`fastres report` as a command, and how numbers and labels are set."""

from __future__ import annotations

import csv
import re
import sys
from itertools import pairwise
from pathlib import Path

import bench_files
import pytest

from fastres import cli
from fastres.bench.peers import FUSED
from fastres.bench.report import svg_curves, units
from fastres.bench.report.canvas import nice_ticks, shortened, text_width


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys):
    source = bench_files.write(tmp_path, bench_files.everything())
    html, table, pictures = tmp_path / "out" / "a.html", tmp_path / "a.csv", tmp_path / "png"
    wanted = ["--html", str(html), "--csv", str(table), "--png", str(pictures)]
    assert cli.main(["report", str(source), *wanted]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("wrote ") for line in out[:2]] == [str(html), str(table)]
    assert html.read_text().startswith("<!DOCTYPE html>")
    names = {path.stem for path in pictures.iterdir()}
    assert {"train", "infer", "block", "op", "memory", "profile0", "profile0-moves"} <= names
    assert {"train-sweep0-speed", "train-sweep2-memory"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())
    with table.open() as file:
        rows = list(csv.DictReader(file))
    content = bench_files.everything()["cases"]
    assert len(rows) == sum(len(case["implementations"]) for case in content.values())
    assert {row["status"] for row in rows} == {"measured", "refused"}
    fused = next(row for row in rows if row["implementation"] == FUSED)
    assert float(fused["times_faster_than_eager"]) == 1.5
    assert fused["noisy"] == "0"


def test_the_same_results_give_the_same_bytes(tmp_path):
    source = str(bench_files.write(tmp_path, {"cases": bench_files.named(bench_files.case())}))
    for name in ("a", "b"):
        out = tmp_path / name
        assert cli.main(["report", source, "--html", f"{out}.html", "--png", str(out)]) == 0
    for name in (".html", "/train.png"):
        assert Path(f"{tmp_path}/a{name}").read_bytes() == Path(f"{tmp_path}/b{name}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{source}"], "nothing to write: give --html, --png, --csv or --readme"),
        (["{folder}/none.json", "--html", "{folder}/a"], "cannot read results from .*none.json"),
        (["{folder}/empty", "--html", "{folder}/a"], "folders with .json files, .*empty has none"),
        (["{source}", "--readme", "{folder}/none.md"], "cannot read the README"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys, arguments, message):
    source = bench_files.write(tmp_path, {"cases": {}})
    (tmp_path / "empty").mkdir()
    words = [word.format(source=source, folder=tmp_path) for word in arguments]
    assert cli.main(["report", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    source = bench_files.write(tmp_path, {"cases": {}})
    (tmp_path / "file").touch()
    assert cli.main(["report", str(source), "--html", str(tmp_path / "file" / "a.html")]) == 1
    assert "fastres report: cannot write" in capsys.readouterr().err


def test_numbers_have_three_digits():
    assert [units.digits(x) for x in (0, 0.123, 9.996, 99.96, 1234.5)] == [
        "0.00", "0.12", "10.0", "100", "1,234",
    ]  # fmt: skip
    assert units.duration(0.0009996) == "1.00 ms"
    assert units.duration(2e-7) == "0.20 µs"
    assert units.memory(2**30) == "1.00 GiB"
    assert units.scaled(4.8e12, "B/s") == "4.80 TB/s"


def test_ticks_and_labels():
    assert nice_ticks(8200, 5) == [0, 2000, 4000, 6000, 8000, 10000]
    assert nice_ticks(0.3, 3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert shortened("short", 100) == "short"
    cut = shortened("a label that is much too long", 100)
    assert cut.endswith("…")
    assert text_width(cut) <= 100


@pytest.mark.parametrize("wanted", [[10, 11, 12], [100, 100, 100, 0], [5], [50, 20, 90, 91]])
def test_labels_are_spread(wanted):
    placed = svg_curves.spread(wanted, 16, 0, 100)
    order = sorted(range(len(wanted)), key=lambda i: (placed[i], wanted[i]))
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(gap >= 16 - 1e-9 for gap in gaps)
    assert min(placed) >= 0
    assert max(placed) <= 100
    assert [wanted[i] for i in order] == sorted(wanted)


def test_pictures_need_matplotlib_and_the_page_does_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = str(bench_files.write(tmp_path, {"cases": bench_files.named(bench_files.case())}))
    assert cli.main(["report", source, "--html", str(tmp_path / "a.html")]) == 0
    assert cli.main(["report", source, "--png", str(tmp_path / "png")]) == 2
    assert "pictures need matplotlib, in the extra 'plots'" in capsys.readouterr().err
