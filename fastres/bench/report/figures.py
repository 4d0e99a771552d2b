"""What the pictures show, before anyone draws them: `svg` for the page, `png` for documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..compare import MEASURED
from ..peers import CONVOLUTIONS, EAGER
from .records import Case, Operator, Profile, Run
from .select import Sweep, ours
from .units import digits, duration, memory

_SLOWEST = 12  # operators in a bar chart
OURS, BASE, PEER, BOUND = "ours", "base", "peer", "bound"


@dataclass(frozen=True)
class Bar:
    """A value from 0, or a dot, with its 95% interval where there is one.

    Attributes:
        text: the value as it is printed, with its interval.
        role: `OURS`, `BASE` for eager channels_last, `PEER`, `BOUND` for what is no competitor.
        part: how much of `value` is drawn solid, or None for all.
    """

    label: str
    value: float
    text: str
    role: str
    low: float | None = None
    high: float | None = None
    noisy: bool = False
    part: float | None = None


@dataclass(frozen=True)
class Bars:
    """Bars (or `dots`) in groups, which may each have a scale of their own; `reference` is a line
    at a value, with its label."""

    key: str
    title: str
    axis: str
    groups: tuple[tuple[str, tuple[Bar, ...]], ...]
    reference: tuple[float, str] | None = None
    dots: bool = False
    own_scale: bool = False

    @property
    def bars(self) -> list[Bar]:
        return [bar for _, bars in self.groups for bar in bars]

    @property
    def noisy(self) -> bool:
        return any(bar.noisy for bar in self.bars)

    def highest(self, group: Sequence[Bar]) -> float:
        """Where the scale of a group ends."""
        bars = group if self.own_scale else self.bars
        reference = () if self.reference is None else (self.reference[0],)
        return max(*reference, *(max(bar.value, bar.high or 0) for bar in bars), 0) or 1.0


@dataclass(frozen=True)
class Line:
    """One implementation over a sweep; `number` tells lines of one role apart."""

    label: str
    role: str
    number: int
    points: tuple[tuple[float, float], ...]
    noisy: tuple[bool, ...]


@dataclass(frozen=True)
class Lines:
    """Curves over x, which is a logarithm to base 2 if `doubling`; y starts at 0."""

    key: str
    title: str
    x_axis: str
    y_axis: str
    lines: tuple[Line, ...]
    doubling: bool
    show: Callable[[float], str] = field(default=digits, compare=False)

    @property
    def noisy(self) -> bool:
        return any(any(line.noisy) for line in self.lines)

    @property
    def xs(self) -> list[float]:
        return sorted({x for line in self.lines for x, _ in line.points})


@dataclass(frozen=True)
class Point:
    """An operator in a roofline plot; `share` is its part of the operators' time."""

    number: int
    label: str
    intensity: float
    rate: float
    share: float


@dataclass(frozen=True)
class Roofline:
    """Flop/s over flop/byte, both logarithmic, under what a machine can do at most."""

    key: str
    title: str
    machine: str
    bandwidth: float
    rate: float
    points: tuple[Point, ...]

    @property
    def ridge(self) -> float:
        """Flop/byte from which on the rate, not the bandwidth, is the limit."""
        return self.rate / self.bandwidth


Figure = Bars | Lines | Roofline


def role(name: str) -> str:
    """Of an implementation."""
    if name.startswith("fastres"):
        return OURS
    return {EAGER: BASE, CONVOLUTIONS: BOUND}.get(name, PEER)


def _measured(case: Case) -> list[Run]:
    return [run for run in case.runs.values() if run.status == MEASURED]


def _ratio_bar(label: str, run: Run, kind: str) -> Bar:
    ratio = run.ratio
    return Bar(label, ratio.median, str(ratio), kind, ratio.low, ratio.high, ratio.noisy)


def speeds(key: str, title: str, cases: Sequence[Case]) -> Bars | None:
    """Every implementation of every case against eager channels_last."""
    groups = []
    for case in cases:
        base = case.runs.get(EAGER)
        if base is None or base.seconds is None:
            continue
        runs = [run for run in _measured(case) if run.ratio is not None]
        runs.sort(key=lambda run: -run.ratio.median)
        bars = [_ratio_bar(run.name, run, role(run.name)) for run in runs]
        if bars:
            bars.append(Bar(EAGER, 1.0, f"1 = {base.step} a step", BASE))
            groups.append((case.title, tuple(bars)))
    return _ratios(key, title, groups)


def overview(key: str, title: str, cases: Sequence[Case], *, dots: bool = False) -> Bars | None:
    """fastres alone, one row a case."""
    rows = [(case, ours(case)) for case in cases]
    bars = tuple(
        _ratio_bar(case.title, run, OURS)
        for case, run in rows
        if run is not None and run.ratio is not None
    )
    return _ratios(key, title, [("", bars)] if bars else [], dots=dots)


def over_time(key: str, title: str, groups: Sequence[Sequence[Case]]) -> Bars | None:
    """One case a group, one measurement a row, oldest first."""
    rows = []
    for cases in groups:
        bars = [_ratio_bar(when(case), ours(case), OURS) for case in cases]
        rows.append((cases[-1].title, tuple(bars)))
    return _ratios(key, title, rows, dots=True)


def when(case: Case) -> str:
    """Date and commit of a measurement."""
    date, commit = (str(case.environment.get(key) or "") for key in ("date", "commit"))
    changed = " + changes" if commit.endswith("+changes") else ""
    return " ".join(part for part in (date[:16].replace("T", " "), commit[:8] + changed) if part)


def _ratios(key: str, title: str, groups: list, *, dots: bool = False) -> Bars | None:
    if not groups:
        return None
    axis = f"times faster than {EAGER}; line: 95% interval"
    return Bars(key, title, axis, tuple(groups), (1.0, EAGER), dots)


def memories(key: str, title: str, cases: Sequence[Case]) -> Bars | None:
    """Peak bytes of every implementation that has them, what is kept for backward drawn solid."""
    groups = []
    for case in cases:
        base = case.runs.get(EAGER)
        bars = []
        for run in _measured(case):
            if run.peak_bytes is None or role(run.name) == BOUND:
                continue
            text = memory(run.peak_bytes)
            if base is not None and base.peak_bytes and run.name != EAGER:
                text += f", {run.peak_bytes / base.peak_bytes:.2f}× eager's"
            kept = run.saved_bytes
            part = kept if kept is not None and kept <= run.peak_bytes else None
            bars.append(Bar(run.name, run.peak_bytes, text, role(run.name), part=part))
        if bars:
            groups.append((case.title, tuple(sorted(bars, key=lambda bar: bar.value))))
    if not groups:
        return None
    stacked = any(bar.part is not None for _, bars in groups for bar in bars)
    axis = "each case to its own scale" + ("; solid: kept for the backward pass" if stacked else "")
    return Bars(key, title, axis, tuple(groups), own_scale=True)


_DOES = {"train": "Training", "infer": "Inference", "memory": "Training"}


def throughput(key: str, kind: str, sweep: Sweep) -> Lines | None:
    """Images a second."""
    title = f"{_DOES[kind]} over {sweep.over}: {sweep.fixed}"
    return _lines(key, title, sweep, "images/s", lambda run: run.per_second, digits)


def peaks(key: str, kind: str, sweep: Sweep) -> Lines | None:
    """Peak memory."""
    title = f"Memory of {_DOES[kind].lower()} over {sweep.over}: {sweep.fixed}"
    return _lines(key, title, sweep, "peak memory of a step", lambda run: run.peak_bytes, memory)


def _lines(
    key: str,
    title: str,
    sweep: Sweep,
    y_axis: str,
    value: Callable[[Run], float | None],
    show: Callable[[float], str],
) -> Lines | None:
    points: dict[str, list[tuple[float, float]]] = {}
    noisy: dict[str, list[bool]] = {}
    for x, case in sweep.cases:
        for run in _measured(case):
            y = value(run)
            if y is not None and not (role(run.name) == BOUND and show is memory):
                points.setdefault(run.name, []).append((x, y))
                noisy.setdefault(run.name, []).append(run.noisy and show is not memory)
    counts: dict[str, int] = {}
    lines = []
    for name, found in points.items():
        kind = role(name)
        if len(found) > 1:
            number = counts.setdefault(kind, 0)
            lines.append(Line(name, kind, number, tuple(found), tuple(noisy[name])))
            counts[kind] += 1
    if not lines:
        return None
    doubling = sweep.over != "image size"
    return Lines(key, title, sweep.over, y_axis, tuple(lines), doubling, show)


def roofline(key: str, profile: Profile) -> Roofline | None:
    """The operators that have flops; numbered as in the table, the slowest first."""
    if not profile.bandwidth or not profile.rate:
        return None
    whole = sum(operator.seconds or 0 for operator in profile.operators) or 1.0
    points = []
    for number, operator in enumerate(profile.operators, 1):
        if operator.seconds and operator.bytes and operator.flops:
            intensity = operator.flops / operator.bytes
            rate, share = operator.flops / operator.seconds, operator.seconds / whole
            points.append(Point(number, operator.name, intensity, rate, share))
    if not points:
        return None
    machine = profile.machine or "the machine"
    title = f"Roofline: {profile.title}"
    return Roofline(key, title, machine, profile.bandwidth, profile.rate, tuple(points))


def movers(key: str, profile: Profile) -> Bars | None:
    """The slowest operators without matrix products: bytes a second against the machine's."""
    if not profile.bandwidth:
        return None
    bars = []
    for number, operator in enumerate(profile.operators, 1):
        if operator.seconds and operator.bytes and not operator.flops and len(bars) < _SLOWEST:
            share = operator.bytes / operator.seconds / profile.bandwidth
            text = f"{share:.0%} of bandwidth, {duration(operator.seconds)}"
            bars.append(Bar(f"{number} {operator.name}", share, text, OURS))
    if not bars:
        return None
    title = f"Operators that only move data: {profile.title}"
    axis = "bytes a second, as a share of the machine's bandwidth"
    return Bars(key, title, axis, (("", tuple(bars)),), (1.0, "bandwidth"))


def gaps(key: str, profile: Profile) -> Bars | None:
    """The time of the network's parts and of the slowest operators, the floor drawn solid."""

    def bar(label: str, one: Operator) -> Bar:
        text, floor = duration(one.seconds), one.floor_seconds
        if floor:
            text += f", floor {duration(floor)}"
        return Bar(
            label, one.seconds, text, OURS, part=None if floor is None else min(floor, one.seconds)
        )

    named = [(f"{number} {one.name}", one) for number, one in enumerate(profile.operators, 1)]
    rows = {
        "parts of the network": [(one.name, one) for one in profile.parts],
        "operators": named[:_SLOWEST],
    }
    groups = []
    for title, found in rows.items():
        bars = tuple(bar(label, one) for label, one in found if one.seconds)
        if bars:
            groups.append((title, bars))
    title = f"Where the time goes: {profile.title}"
    return Bars(key, title, "solid: the floor", tuple(groups)) if groups else None
