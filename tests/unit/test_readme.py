"""The README's numbers are those of the recorded results."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import bench_files
import pytest

from fastres import cli
from fastres.bench.report import load, readme
from fastres.training.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_table_is_made_from_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"<!-- results: (\S+) -->", text)
    assert names
    for name in names:
        assert readme.replaced(text, name, load.read([RESULTS / name])) == text


def test_the_command_rewrites_the_table_and_the_picture_after_it(tmp_path, capsys):
    cases = {"train resnet50 fp32, batch 16, 224px": bench_files.case()}
    (tmp_path / "folder").mkdir()
    bench_files.write(tmp_path / "folder", {"cases": cases})
    bench_files.write(tmp_path / "folder", {"cases": {}}, "without-marks.json")
    begin = readme.BEGIN.format(name="results.json")
    around = f"before\n{begin}\n%s\n{readme.END}\n\n![ratios](images/steps.png)\n![other](b.png)"
    target, shown = tmp_path / "README.md", tmp_path / "images" / "steps.png"
    target.write_text(around % "old", encoding="utf-8")
    for source in ("folder", "folder/results.json"):
        assert cli.main(["report", str(tmp_path / source), "--readme", str(target)]) == 0
        assert capsys.readouterr().out.split() == ["wrote", str(target), "wrote", str(shown)]
        table = readme.table(load.read([tmp_path / "folder" / "results.json"]))
        assert target.read_text(encoding="utf-8") == around % table
        assert shown.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "b.png").exists()


def test_noise_is_said_in_the_table(tmp_path):
    cases = {"train resnet50 fp32, batch 16, 224px": bench_files.case(noisy=True)}
    found = load.read([bench_files.write(tmp_path, {"cases": cases})])
    row = "| resnet50 fp32 | 224×224 | 16 | 11 ms | 1.47 to 1.53× noisy | 0.60× eager's |"
    assert row in readme.table(found).splitlines()


def test_results_without_a_training_case_and_a_text_without_marks_are_refused(tmp_path, capsys):
    empty = bench_files.write(tmp_path, {"cases": {}})
    with pytest.raises(UsageError, match="training case"):
        readme.table(load.read([empty]))
    with pytest.raises(UsageError, match="must hold"):
        readme.replaced("no marks", "a.json", load.read([empty]))
    shutil.copy(ROOT / "README.md", tmp_path)
    target = tmp_path / "README.md"
    before = target.read_bytes()
    assert cli.main(["report", str(empty), "--readme", str(target)]) == 2
    assert "must hold '<!-- results: results.json -->'" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    shutil.copy(empty, tmp_path / "folder")
    assert cli.main(["report", str(tmp_path / "folder"), "--readme", str(target)]) == 2
    assert "must hold marks of a file in" in capsys.readouterr().err
    assert target.read_bytes() == before
