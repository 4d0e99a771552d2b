"""Times of several implementations taken in turns, and what may be concluded from them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch

Call = Callable[[int], object]  # takes the index of the call, which chooses the input buffer
Clock = Callable[[Callable[[], object]], float]

NOISY = 0.05  # half of an interquartile range, relative to the median, above which we say so


@dataclass(frozen=True)
class Summary:
    """Median and spread of samples, in the samples' unit."""

    median: float
    minimum: float
    maximum: float
    lower_quartile: float
    upper_quartile: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Raises ValueError without a sample."""
        if not samples:
            raise ValueError("samples must not be empty")
        middle = median(samples)
        low, high = middle, middle
        if len(samples) > 1:
            low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(middle, min(samples), max(samples), low, high, len(samples))

    @property
    def iqr(self) -> float:
        """Interquartile range."""
        return self.upper_quartile - self.lower_quartile

    @property
    def noisy(self) -> bool:
        """Whether the middle half of the samples is further from the median than `NOISY`."""
        return self.iqr / 2 > NOISY * self.median

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "iqr": self.iqr, "noisy": self.noisy}


@dataclass(frozen=True)
class Ratio:
    """How many times faster one implementation is than a peer.

    Each round gives one ratio, of two samples taken right after each other, so that a drift of
    the machine cancels. `low` and `high` hold the true median with at least 95% probability
    whatever the noise's distribution, or are the extremes where there are too few rounds for it.
    """

    summary: Summary
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], peer: Sequence[float]) -> Ratio:
        """Raises ValueError unless both have the same number of rounds, at least one."""
        if len(ours) != len(peer):
            raise ValueError(
                f"peer must have as many rounds as ours, got {len(peer)} and {len(ours)}"
            )
        ratios = sorted(b / a for a, b in zip(ours, peer, strict=True))
        skipped = _order_statistic(len(ratios))
        return cls(Summary.of(ratios), ratios[skipped], ratios[-1 - skipped])

    @property
    def value(self) -> float:
        return self.summary.median

    @property
    def noisy(self) -> bool:
        """Whether the rounds are spread too far, or leave the median itself open by too much."""
        return self.summary.noisy or self.high - self.low > 4 * NOISY * self.value

    def __str__(self) -> str:
        if self.noisy:
            return f"{self.low:.2f} to {self.high:.2f} noisy"
        return f"{self.value:.3f} [{self.low:.2f}, {self.high:.2f}]"

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.summary.as_dict(),
            "low95": self.low,
            "high95": self.high,
        }


def _order_statistic(n: int) -> int:
    """How many values to leave out at each end for a 95% interval of the median (sign test)."""
    outside, k = 0.0, 0
    while k < (n - 1) // 2:
        outside += math.comb(n, k) / 2**n
        if 2 * outside > 0.05:
            break
        k += 1
    return max(k - 1, 0) if 2 * outside > 0.05 else k


def cpu_clock(call: Callable[[], object]) -> float:
    """Seconds that `call` takes on the host."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class CudaClock:
    """Seconds between two events around `call` on the current stream of an idle device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._start = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)

    def __call__(self, call: Callable[[], object]) -> float:
        with torch.cuda.device(self._device):
            torch.cuda.synchronize(self._device)
            self._start.record()
            call()
            self._end.record()
            self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock that measures work on `device`."""
    return CudaClock(device) if device.type == "cuda" else cpu_clock


def wall_clock(device: torch.device) -> Clock:
    """Host seconds until the work is done: for a first call, whose cost is compilation."""

    def measure(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return measure


def order(names: Sequence[str], turn: int) -> list[str]:
    """The order of round `turn`: each name comes at each place, after each other name, as often."""
    shift = turn % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if (turn // len(names)) % 2 else rotated


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    clock: Clock = cpu_clock,
    calls_per_sample: int = 1,
    warm_up: int = 1,
    deadline: float | None = None,
    least: int = 1,
    on_round: Callable[[int], object] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds per call of every implementation, one sample of each in turn, round by round.

    Args:
        calls: name to the call that is measured, given a running index.
        rounds: samples of each.
        clock: measures a callable in seconds.
        calls_per_sample: calls a sample averages over.
        warm_up: rounds before the first that counts.
        deadline: time.monotonic() after which no further round starts.
        least: rounds that are taken all the same.
        on_round: told the number of each finished round.

    Raises:
        ValueError: rounds or calls_per_sample is below 1, or there is nothing to call.
    """
    if rounds < 1 or calls_per_sample < 1 or not calls:
        raise ValueError(
            "rounds, calls_per_sample and the number of calls must be at least 1, got "
            f"{rounds}, {calls_per_sample} and {len(calls)}"
        )
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    index = 0
    with _no_garbage_collection():
        for turn in range(-warm_up, rounds):
            if turn >= max(least, 1) and deadline is not None and time.monotonic() > deadline:
                break
            for name in order(names, turn % (2 * len(names))):
                first, call = index, calls[name]

                def sample(call: Call = call, first: int = first) -> None:
                    for offset in range(calls_per_sample):
                        call(first + offset)

                seconds = clock(sample) / calls_per_sample
                if turn >= 0:
                    times[name].append(seconds)
            index += calls_per_sample
            if turn >= 0:
                on_round(turn + 1)
    return times


@contextmanager
def _no_garbage_collection():
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
