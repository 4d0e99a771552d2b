"""The regression gate: ratios of two files with their intervals, and what fails it."""

from __future__ import annotations

import random

import pytest

from fastres import cli
from fastres.bench import gate, results
from fastres.bench.gate import Shift, compare
from fastres.bench.peers import EAGER, FUSED
from fastres.bench.timing import Ratio, Summary
from fastres.training.errors import UsageError

CASE = "train resnet50 fp32, batch 16, 224px"


def row(samples, baseline=None):
    summary = Summary.of(samples)
    found = {"status": "measured", "seconds": {**summary.as_dict(), "rounds": samples}}
    found["times_faster_than"] = (
        {} if baseline is None else {EAGER: Ratio.of(samples, baseline).as_dict()}
    )
    return found


def case(ours, eager, **others):
    rows = {EAGER: row(eager), FUSED: row(ours, eager)}
    rows |= {name: row(samples, eager) for name, samples in others.items()}
    return {CASE: {"implementations": rows, "environment": {"torch": "2.15"}}}


def samples(seed, median=1.0, spread=0.01, rounds=15, drift=()):
    generator = random.Random(seed)
    drift = drift or [1.0] * rounds
    return [median * generator.gauss(1.0, spread) * d for d in drift]


@pytest.fixture
def old():
    return case(samples(0), samples(1, 1.3))


def of(found, name):
    return next(row for row in found if row.implementation == name)


def test_interval_holds_the_ratio_as_often_as_it_says():
    generator = random.Random(0)
    for rounds in (5, 12):
        hits = 0
        for _ in range(300):
            old = [generator.gauss(1.0, 0.1) for _ in range(rounds)]
            new = [1.1 * generator.gauss(1.0, 0.1) for _ in range(rounds)]
            shift = Shift.of(old, new)
            assert shift.low <= shift.value <= shift.high
            hits += shift.low <= 1.1 <= shift.high
        assert hits >= 0.93 * 300


def test_interval_leaves_out_what_the_tables_of_mann_and_whitney_say():
    # critical values of U at 5%, two-sided, plus one: the order statistic that bounds the interval
    critical = {(4, 4): 0, (5, 5): 2, (6, 6): 5, (8, 8): 13, (10, 10): 23, (5, 8): 6}
    assert {pair: gate._outside(*pair) for pair in critical} == critical


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, gate.SAME), (1.02, gate.SAME), (1.2, gate.SLOWER), (0.8, gate.FASTER)],
)
def test_verdicts(old, factor, verdict):
    found, missing = compare(old, case(samples(2, factor), samples(3, 1.3)), 0.05)
    ours = of(found, FUSED)
    assert ours.verdict == verdict
    assert ours.relative.value == pytest.approx(factor, rel=0.02)
    assert ours.failed == (verdict == gate.SLOWER)
    assert missing == []


def test_a_drift_of_the_machine_cancels(old):
    """Everything is twice as slow: the machine is, and not fastres."""
    found, _ = compare(old, case(samples(2, 2.0), samples(3, 2.6)), 0.05)
    ours = of(found, FUSED)
    assert ours.raw.low > 1.9
    assert ours.verdict == gate.SAME
    # drift within a run cancels as well, round by round
    drift = [1.0, 1.5, 2.0] * 5
    new = case(samples(2, drift=drift), samples(3, 1.3, drift=drift))
    found, _ = compare(old, new, 0.05)
    assert of(found, FUSED).verdict == gate.SAME


def test_a_noisy_run_is_no_regression_and_says_so(old):
    """The median is past the threshold, the interval is not."""
    new = case(samples(4, 1.12, 0.25), samples(5, 1.3, 0.25))
    found, _ = compare(old, new, 0.05)
    ours = of(found, FUSED)
    assert ours.relative.low < 1.05 < ours.relative.high
    assert ours.verdict == gate.UNCERTAIN
    assert ours.reason == "noisy"
    assert not ours.failed


def test_a_peer_may_become_slower(old):
    name = "torch.compile"
    before = {CASE: case(samples(0), samples(1, 1.3), **{name: samples(6)})[CASE]}
    found, _ = compare(before, case(samples(2), samples(3, 1.3), **{name: samples(7, 2.0)}), 0.05)
    assert of(found, name).verdict == gate.SLOWER
    assert not of(found, name).failed
    assert not any(row.failed for row in found)


@pytest.mark.parametrize(
    "after", [{"status": "refused", "reason": "gradient of fc.bias: wrong"}, None]
)
def test_a_speed_that_is_lost_is_a_regression(old, after):
    new = case(samples(2), samples(3, 1.3))
    del new[CASE]["implementations"][FUSED]
    if after is not None:
        new[CASE]["implementations"][FUSED] = after
    found, _ = compare(old, new, 0.05)
    ours = of(found, FUSED)
    assert ours.verdict == gate.LOST
    assert ours.failed
    assert ours.reason == (after or {"reason": "not in the new file"})["reason"]


def test_few_rounds_decide_nothing(old):
    found, _ = compare(old, case([2.0] * 3, [1.3] * 3), 0.05)
    assert of(found, FUSED).verdict == gate.FEW
    with pytest.raises(ValueError, match="at least 4 rounds, got 3 and 5"):
        Shift.of([1.0] * 3, [1.0] * 5)


def test_the_command_ends_with_one_past_the_threshold(tmp_path, old, capsys):
    files = [tmp_path / name for name in ("old.json", "new.json")]
    new = case(samples(2, 1.2), samples(3, 1.3))
    new[CASE]["environment"]["torch"] = "2.16"
    results.write(files[0], {"cases": {**old, "train another": old[CASE]}})
    results.write(files[1], {"cases": new})
    arguments = ["bench", "--compare", *map(str, files)]
    assert cli.main(arguments) == 1
    told = capsys.readouterr().out
    assert f"REGRESSION: {CASE}: fastres: SLOWER" in told
    assert "differs: torch: old 2.15; new 2.16" in told
    assert "not in the new file: train another" in told
    assert cli.main([*arguments, "--threshold", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "no regression of fastres is certain" in told
    assert "not decided" not in told
    results.write(files[1], {"cases": case(samples(4, 1.12, 0.25), samples(5, 1.3, 0.25))})
    assert cli.main(arguments) == 0
    assert "not decided: 1 of fastres, for noise or too few rounds" in capsys.readouterr().out


def test_the_command_names_what_it_cannot_compare(tmp_path, old, capsys):
    path, other = tmp_path / "old.json", tmp_path / "other.json"
    results.write(path, {"cases": old})
    results.write(other, {"cases": {"another": old[CASE]}})
    for arguments, told in (
        (["--compare", str(path), str(other)], "no measured case in common"),
        (["--compare", str(path), str(tmp_path / "none.json")], "there is no file"),
        (["--compare", str(path), "train"], "KIND comes before"),
        (["train", "--compare", str(path), str(path)], "leave out KIND"),
        (["--compare", str(path)], "does not say how it was measured"),
        ([], "say what to measure: train, infer, block, op, memory"),
        (["--compare", str(path), str(other), "--threshold", "0"], "threshold must be above 0"),
    ):
        assert cli.main(["bench", *arguments]) == 2
        assert told in capsys.readouterr().err
    other.write_text("{")
    with pytest.raises(UsageError, match="is not a results file"):
        gate.load(other)
