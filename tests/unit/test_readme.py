"""The README's numbers are those of the recorded results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastres.bench import readme, results

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_made_from_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"<!-- results: (\S+) -->", text)
    content = results.read(ROOT / "benchmarks" / "results" / name)
    assert readme.replaced(text, name, content) == text


def test_results_without_a_training_case_and_a_text_without_marks_are_refused():
    with pytest.raises(ValueError, match="training case"):
        readme.table({"cases": {}})
    with pytest.raises(ValueError, match="must hold"):
        readme.replaced("no marks", "a.json", {})
