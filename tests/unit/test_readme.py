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
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"<!-- results: (\S+) -->", text)
    shown = re.search(r"\((docs/images/\S+\.png)\)", text.partition(readme.END)[2])[1]
    target = tmp_path / "README.md"
    target.write_text(text.replace("1.33×", "9.99×"), encoding="utf-8")
    assert cli.main(["report", str(RESULTS / name), "--readme", str(target)]) == 0
    assert target.read_text(encoding="utf-8") == text
    assert capsys.readouterr().out.split() == ["wrote", str(target), "wrote", str(tmp_path / shown)]
    assert (tmp_path / shown).read_bytes().startswith(b"\x89PNG")


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
    assert target.read_bytes() == before
