"""The suite's last word: speed wanted and speed got, the operators in the way, what to tune."""

from __future__ import annotations

import pytest

from fastres.bench import results, suite, suite_kernels, suite_verdict
from fastres.bench.suite import NOT_REACHED, OK, Stage

STAGES = ("resnet50-bf16", "resnet50-tuned")


def step(folder, stage, **rates):
    """Leave a stage's results with these images per second."""
    implementations = {name: {"per_second": rate} for name, rate in rates.items()}
    results.write(
        folder / f"{stage}.json", {"cases": {"step": {"implementations": implementations}}}
    )


def gap(operator, milliseconds, *chosen):
    return {
        "operator": operator, "calls": 2, "gap_seconds": milliseconds * 1e-3,
        "floor_seconds": 1e-4, "chosen": list(chosen),
    }  # fmt: skip


def test_nothing_measured_is_not_known(tmp_path):
    found = suite_verdict.verdict(tmp_path, STAGES)
    assert found["met"] is None
    assert suite_verdict.lines(found) == [
        "verdict: not known: no training step of ours was measured"
    ]


def test_the_best_of_every_implementation_counts(tmp_path):
    peers = {"torch.compile": 4000.0, "eager channels_last": 3000.0, "eager NCHW": 9.0}
    step(tmp_path, STAGES[0], **peers, fastres=8000.0, **{"fastres CUDA graph": 8500.0})
    found = suite_verdict.verdict(tmp_path, STAGES)
    assert found["met"] is False
    assert [check["met"] for check in found["checks"]] == [False, True, True]
    # the tuned table brings it there
    step(tmp_path, STAGES[1], **{"fastres CUDA graph": 9100.0, "eager channels_last": 3100.0})
    found = suite_verdict.verdict(tmp_path, STAGES)
    assert found["met"] is True
    assert found["implementation"] == "fastres CUDA graph"
    assert [check["got"] for check in found["checks"]] == pytest.approx(
        [9100, 2.275, 2.935], rel=1e-3
    )
    assert suite_verdict.lines(found)[1] == "  images/s: 9100, wanted 9000: met"


def test_a_peer_that_was_not_measured_leaves_it_open(tmp_path):
    step(tmp_path, STAGES[0], fastres=9500.0, **{"eager channels_last": 3000.0})
    found = suite_verdict.verdict(tmp_path, STAGES)
    assert found["met"] is None
    assert "  x torch.compile: not measured, wanted 2: not known" in suite_verdict.lines(found)


def test_the_largest_gaps_are_named_and_tuned_first(tmp_path):
    rows = [gap("expand a", 2.0, "expand"), gap("stats", 1.5, "bn_stats", "conv1x1"),
            gap("expand b", 1.0, "expand")]  # fmt: skip
    results.write(tmp_path / "kernels.json", {"parts": {"operators": rows}})
    step(tmp_path, STAGES[0], fastres=1000.0)
    told = suite_verdict.lines(suite_verdict.verdict(tmp_path, STAGES))
    assert told[0] == "verdict: NOT met (fastres)"
    assert told[-3] == "  gap 2.000 ms a step: expand a"
    assert suite_kernels.worst({"operators": rows}) == ["expand", "bn_stats", "conv1x1"]
    assert suite_kernels.worst({}) == []


def test_nothing_is_kept_free_for_a_spare_stage(tmp_path):
    told = []

    def command(seconds):
        told.append(seconds)
        return suite.python("-c", "pass")

    stages = [Stage("first", command, 1.0, 5), Stage("rest", command, 1.0, 200, spare=True)]
    rows = suite.run(stages, tmp_path, 100, {}, clock=lambda: 0.0, log=lambda line: None)
    assert told == [90.0]
    assert [row["status"] for row in rows] == [OK, NOT_REACHED]
