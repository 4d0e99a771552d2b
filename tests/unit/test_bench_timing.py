"""Timers: the order of rounds, spread, ratios, clocks and time limits."""

from __future__ import annotations

import random
import threading
import time
from itertools import permutations

import pytest

from fastres.bench.timelimit import time_limit
from fastres.bench.timing import Ratio, Summary, cpu_clock, interleave, order


class Recorder:
    """Calls that note who was called with what; each takes a given time on a made-up clock."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.calls: list[tuple[str, int]] = []
        self.now = 0.0

    def calls_by_name(self):
        return {name: lambda index, name=name: self.call(name, index) for name in self.seconds}

    def call(self, name: str, index: int) -> None:
        self.calls.append((name, index))
        self.now += self.seconds[name]

    def clock(self, call) -> float:
        start = self.now
        call()
        return self.now - start


def test_each_round_calls_everyone_once_and_the_order_changes():
    recorder = Recorder(a=1.0, b=2.0, c=3.0)
    times = interleave(recorder.calls_by_name(), 6, clock=recorder.clock, warm_up=0)
    rounds = [[name for name, _ in recorder.calls[i : i + 3]] for i in range(0, 18, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {tuple(names) for names in rounds} == set(permutations("abc"))
    assert times == {"a": [1.0] * 6, "b": [2.0] * 6, "c": [3.0] * 6}


def test_everyone_of_a_round_gets_the_same_buffer_and_buffers_rotate():
    recorder = Recorder(a=1.0, b=1.0)
    interleave(recorder.calls_by_name(), 4, clock=recorder.clock, warm_up=0)
    indices = [index for _, index in recorder.calls]
    assert indices == [0, 0, 1, 1, 2, 2, 3, 3]


def test_warm_up_is_called_but_not_counted():
    recorder = Recorder(a=1.0, b=1.0)
    times = interleave(recorder.calls_by_name(), 3, clock=recorder.clock, warm_up=2)
    assert len(recorder.calls) == 10
    assert [len(samples) for samples in times.values()] == [3, 3]


def test_a_sample_of_several_calls_is_their_mean_over_several_buffers():
    recorder = Recorder(a=0.5)
    times = interleave(
        recorder.calls_by_name(), 2, clock=recorder.clock, calls_per_sample=3, warm_up=0
    )
    assert times == {"a": [0.5, 0.5]}
    assert [index for _, index in recorder.calls] == [0, 1, 2, 3, 4, 5]


def test_order_is_balanced_over_two():
    assert [order(["a", "b"], turn) for turn in range(4)] == [
        ["a", "b"], ["b", "a"], ["b", "a"], ["a", "b"],
    ]  # fmt: skip


def test_a_deadline_ends_after_a_whole_round():
    times = interleave(
        {"a": lambda _: None, "b": lambda _: None}, 50, deadline=time.monotonic() - 1
    )
    assert [len(samples) for samples in times.values()] == [1, 1]


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"rounds": 1, "calls_per_sample": 0}])
def test_bad_numbers_are_named(bad):
    with pytest.raises(ValueError, match="at least 1"):
        interleave({"a": lambda _: None}, **bad)


def test_summary():
    summary = Summary.of([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (summary.median, summary.minimum, summary.maximum, summary.samples) == (3, 1, 5, 5)
    assert (summary.lower_quartile, summary.upper_quartile, summary.iqr) == (2, 4, 2)
    assert Summary.of([2.0]).iqr == 0
    with pytest.raises(ValueError, match="must not be empty"):
        Summary.of([])


def test_pairwise_ratio_survives_a_drift_that_medians_do_not():
    drift = [1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 9.0]
    ratio = Ratio.of(drift, [1.25 * seconds for seconds in drift])
    assert ratio.value == pytest.approx(1.25)
    assert not ratio.noisy


def test_a_wide_spread_is_called_noisy():
    ratio = Ratio.of([1.0] * 6, [0.8, 1.4, 0.9, 1.5, 1.1, 1.2])
    assert ratio.noisy
    assert "noisy" in str(ratio)


def test_a_wide_interval_is_called_noisy_though_most_rounds_agree():
    """Six rounds and one outlier: the interval is the extremes."""
    ratio = Ratio.of([1.0] * 6, [1.2, 1.2, 1.21, 1.2, 1.2, 2.4])
    assert not ratio.summary.noisy
    assert ratio.noisy
    assert str(ratio) == "1.20 to 2.40 noisy"
    assert not Ratio.of([1.0] * 12, [1.2] * 10 + [1.21, 2.4]).noisy


def test_interval_holds_the_median_as_often_as_it_says():
    generator = random.Random(0)
    hits = 0
    for _ in range(400):
        ratio = Ratio.of([1.0] * 15, [generator.gauss(1.2, 0.3) for _ in range(15)])
        hits += ratio.low <= 1.2 <= ratio.high
    assert hits >= 0.93 * 400
    few = Ratio.of([1.0] * 3, [1.0, 2.0, 3.0])
    assert (few.low, few.high) == (1.0, 3.0)
    many = Ratio.of([1.0] * 15, [float(i) for i in range(15)])
    assert (many.low, many.high) == (3.0, 11.0)


def test_ratio_needs_equal_rounds():
    with pytest.raises(ValueError, match="as many rounds"):
        Ratio.of([1.0], [1.0, 2.0])


def test_cpu_clock_measures_the_call():
    assert cpu_clock(lambda: time.sleep(0.02)) >= 0.02


def test_time_limit_stops_even_what_survives_any_exception():
    start = time.monotonic()

    def stubborn() -> None:
        while time.monotonic() - start < 10:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    with pytest.raises(TimeoutError, match="stopped after"), time_limit(0.2):
        stubborn()
    assert time.monotonic() - start < 5


def test_time_limit_leaves_the_fast_alone_and_other_threads():
    with time_limit(0.1):
        pass
    time.sleep(0.15)  # the alarm is off
    done = []

    def elsewhere() -> None:
        with time_limit(0.01):
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [True]
    with pytest.raises(ValueError, match="seconds"), time_limit(0):
        pass
