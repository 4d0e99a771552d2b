"""`fastres demo`, cut to a few images and steps."""

from __future__ import annotations

import json

import pytest

from fastres import cli
from fastres.training import demo
from fastres.training.data import digits
from fastres.training.speed import StepTimes, spread

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def few_images(monkeypatch):
    whole = digits.open_digits

    def few(seed):
        source = whole(seed)
        for split, count in ((source.train, 64), (source.held_out, 20)):
            split.images, split.labels = split.images[:count], split.labels[:count]
        return source

    monkeypatch.setattr(digits, "open_digits", few)
    monkeypatch.setenv("FASTRES_BACKEND", "reference")
    # a build machine's terminal may be narrow
    monkeypatch.setenv("COLUMNS", "100")


def _run(out, *arguments):
    return cli.main(
        ["demo", "--device", "cpu", "--out", str(out), "--epochs", "1", "--rounds", "2", *arguments]
    )


def test_demo_shows_a_table_a_ratio_and_a_curve(tmp_path, few_images, capsys):
    assert _run(tmp_path) == 0
    assert _run(tmp_path) == 0  # starts anew over its own files
    out = capsys.readouterr().out
    assert "test digits it never saw" in out
    assert "train loss" in out
    assert "(medians)" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["epochs"]) == 1
    assert len(results["step"]["fused"]["times_s"]) == 2
    assert results["config"]["fused"] is True


def test_a_full_demo_below_its_target_fails(tmp_path, few_images, capsys, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 1)
    assert _run(tmp_path) == 1
    assert "expected at least 97.0% on the test images" in capsys.readouterr().err


def test_rounds_are_checked(capsys):
    assert cli.main(["demo", "--rounds", "1"]) == 2
    assert "rounds must be at least 2, got 1" in capsys.readouterr().err


def test_speedup_is_of_medians():
    times = StepTimes(fused=[1.0, 2.0, 9.0], reference=[3.0, 3.0, 30.0])
    assert times.speedup == 1.5
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((1.5, 3.0, 4.5))
