"""docs/evaluation.md says what its results file holds, and names options that there are."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from fastres.evaluation import command

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text()


def test_the_table_is_the_results_files():
    runs = json.loads((DOCS / "results" / "evaluation_digits.json").read_text())["evaluation"]
    said = re.findall(r"\| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) \|", PAGE)
    held = {
        tuple(
            [f"{run['top1'][key]:.2f}" for key in ("percent", "low95", "high95")]
            + [f"{run['loss']:.4f}"]
        )
        for run in runs.values()
    }
    assert set(said) == held
    assert len(said) == len(runs)


def test_every_option_on_the_page_is_one():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    # of fastres train and fastres models
    known |= {"--epochs", "--milestones", "--seed", "--json", "--image-size"}
    assert set(re.findall(r"--[a-z][a-z-]*", PAGE)) <= known
