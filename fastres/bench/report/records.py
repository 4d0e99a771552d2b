"""What results files hold, in one form for old and new ones; what a file lacks is None."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..peers import EAGER
from ..timing import NOISY
from .units import duration

KINDS = ("train", "infer", "block", "op", "memory")
NETWORKS = ("train", "infer", "memory")  # the kinds whose cases are networks


@dataclass(frozen=True)
class Ratio:
    """How many times faster; `low` and `high` are the 95% interval of the median. Of a noisy one
    only the interval is told."""

    median: float
    low: float
    high: float
    noisy: bool

    def __str__(self) -> str:
        if self.noisy:
            return f"{self.low:.2f} to {self.high:.2f}× noisy"
        return f"{self.median:.2f}× ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Run:
    """One implementation of a case. Seconds are of one step, bytes of its peak."""

    name: str
    status: str
    reason: str | None = None
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    per_second: float | None = None
    make_seconds: float | None = None
    first_call_seconds: float | None = None
    peak_bytes: float | None = None
    saved_bytes: float | None = None
    faster_than: dict[str, Ratio] = field(default_factory=dict)

    @property
    def ratio(self) -> Ratio | None:
        """To eager channels_last."""
        return self.faster_than.get(EAGER)

    @property
    def noisy(self) -> bool:
        """Whether its seconds are; a ratio can be quiet all the same, a drift cancels in it."""
        if self.quartiles is None or not self.seconds:
            return False
        return (self.quartiles[1] - self.quartiles[0]) / 2 > NOISY * self.seconds

    @property
    def step(self) -> str:
        """Its seconds; of noisy ones the quartiles."""
        if self.noisy:
            return " to ".join(duration(end) for end in self.quartiles)
        return duration(self.seconds)


@dataclass(frozen=True)
class Case:
    """What was measured under several implementations.

    Attributes:
        file: name of the file it is from.
        name: as in the file.
        kind: one of `KINDS`.
        model: a network, or None of a block or an operator.
        dtype: "fp32", "bf16", "fp16".
        image_size: pixels, or None.
        note: a condition that its name states beyond all this, "" for none.
        floor_seconds: what bytes and flops take at least, or None.
        machine: of the floor, or None.
        optimizer: whether the optimiser's step is part of it.
    """

    file: str
    name: str
    kind: str
    model: str | None
    dtype: str
    batch: int
    image_size: int | None
    note: str
    device: str
    floor_seconds: float | None
    machine: str | None
    optimizer: bool
    runs: dict[str, Run]
    environment: dict[str, Any]

    @property
    def title(self) -> str:
        """Of a network: what it is without the file's way of naming it."""
        if self.kind not in NETWORKS or self.model is None:
            return self.name.removeprefix(f"{self.kind} ")
        parts = [f"{self.model} {self.dtype}", f"batch {self.batch}"]
        if self.image_size is not None:
            parts.append(f"{self.image_size}×{self.image_size}")
        if self.optimizer:
            parts.append("SGD")
        return ", ".join([*parts, self.note] if self.note else parts)

    @property
    def rounds(self) -> int:
        return max((run.rounds for run in self.runs.values()), default=0)


@dataclass(frozen=True)
class Operator:
    """All calls of an operator, or of a part of the network, in one step."""

    name: str
    calls: int
    seconds: float | None
    bytes: float | None
    flops: float | None
    floor_seconds: float | None


@dataclass(frozen=True)
class Profile:
    """A step operator by operator and part by part, the slowest first; bandwidth in bytes/s and
    rate in flop/s, None if unknown. `plain_seconds` are without a profiler."""

    file: str
    name: str
    title: str
    device: str
    step_seconds: float | None
    machine: str | None
    source: str | None
    bandwidth: float | None
    rate: float | None
    operators: tuple[Operator, ...]
    parts: tuple[Operator, ...]
    plain_seconds: float | None
    trace: str | None
    environment: dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """The largest batch of one implementation, None if not even the smallest fits."""

    name: str
    batch: int | None
    limit: str | None
    reason: str | None
    tried: tuple[tuple[int, bool, str | None], ...]


@dataclass(frozen=True)
class Largest:
    """The largest batch that fits."""

    file: str
    name: str
    title: str
    device: str
    fits: dict[str, Fit]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Everything in the files, in their order; `not_reached` are cases that the time did not
    suffice for, as (file, case, reason)."""

    files: tuple[str, ...]
    cases: tuple[Case, ...]
    profiles: tuple[Profile, ...]
    largest: tuple[Largest, ...]
    not_reached: tuple[tuple[str, str, str], ...] = ()

    @property
    def devices(self) -> list[str]:
        parts = (*self.cases, *self.profiles, *self.largest)
        return list(dict.fromkeys(part.device for part in parts))
