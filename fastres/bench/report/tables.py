"""The page's tables: the numbers behind every picture, and the reasons for those that are not."""

from __future__ import annotations

from collections.abc import Sequence

from ..peers import EAGER
from . import units
from .figures import OURS, role
from .markup import Markup, marked, table
from .records import Case, Fit, Largest, Profile, Run

NONE = "–"
_NAMED = 3  # cases that a reason names


def cases(caption: str, found: Sequence[Case]) -> Markup:
    """All implementations of all cases; a column that no case has is left out."""
    columns = {
        "step": lambda case, run: _duration(run.seconds),
        "quartiles": lambda case, run: _quartiles(run),
        "images/s": lambda case, run: _digits(run.per_second),
        f"times faster than {EAGER}": lambda case, run: _ratio(run),
        "rounds": lambda case, run: str(run.rounds) if run.rounds else NONE,
        "times the floor": lambda case, run: _over_floor(case, run),
        "peak memory": lambda case, run: _memory(run.peak_bytes),
        "kept for backward": lambda case, run: _memory(run.saved_bytes),
        "first call": lambda case, run: _duration(run.first_call_seconds),
        "preparing": lambda case, run: _duration(run.make_seconds),
    }
    groups = []
    for case in found:
        rows = []
        for run in case.runs.values():
            if run.seconds is None and run.peak_bytes is None:
                continue
            cells = [run.name, *(show(case, run) for show in columns.values())]
            rows.append((cells, "ours" if role(run.name) == OURS else None))
        if rows:
            groups.append((_headed(case), rows))
    used = [
        i
        for i in range(len(columns) + 1)
        if i == 0 or any(cells[i] != NONE for _, rows in groups for cells, _ in rows)
    ]
    header = ["implementation", *columns]
    kept = [
        (heading, [([cells[i] for i in used], style) for cells, style in rows])
        for heading, rows in groups
    ]
    return table(caption, [header[i] for i in used], kept)


def _headed(case: Case) -> str:
    said = [case.title]
    if case.floor_seconds is not None:
        machine = f" on {case.machine}" if case.machine else ""
        said.append(f"floor{machine}: {units.duration(case.floor_seconds)}")
    return "; ".join(said)


def _duration(seconds: float | None) -> str:
    return NONE if seconds is None else units.duration(seconds)


def _digits(value: float | None) -> str:
    return NONE if value is None else units.digits(value)


def _memory(count: float | None) -> str:
    return NONE if count is None else units.memory(count)


def _quartiles(run: Run) -> str:
    if run.quartiles is None:
        return NONE
    return " to ".join(units.duration(value) for value in run.quartiles)


def _ratio(run: Run) -> Markup | str:
    if run.name == EAGER and run.seconds is not None:
        return "1"
    return NONE if run.ratio is None else marked(str(run.ratio))


def _over_floor(case: Case, run: Run) -> str:
    if not case.floor_seconds or run.seconds is None:
        return NONE
    return f"{units.digits(run.seconds / case.floor_seconds)}×"


def operators(profile: Profile) -> Markup:
    """A profiled step, the slowest operator first."""
    rows = []
    whole = sum(operator.seconds or 0 for operator in profile.operators)
    for number, operator in enumerate(profile.operators, 1):
        seconds, floor = operator.seconds, operator.floor_seconds
        reached = f"{floor / seconds:.0%}" if seconds and floor is not None else NONE
        rows.append(
            (
                [
                    f"{number} {operator.name}",
                    str(operator.calls),
                    _duration(seconds),
                    f"{seconds / whole:.1%}" if seconds and whole else NONE,
                    NONE if operator.bytes is None else units.scaled(operator.bytes, "B"),
                    NONE if operator.flops is None else units.scaled(operator.flops, "flop"),
                    _duration(floor),
                    reached,
                ],
                None,
            )
        )
    header = ["operator", "calls", "time", "of operators", "bytes", "flops", "floor", "floor/time"]
    return table(f"Operators of one step: {profile.title}", header, [("", rows)])


def largest(found: Sequence[Largest]) -> Markup:
    """The largest batch by network and implementation."""
    groups = []
    for one in found:
        base = one.fits.get(EAGER)
        rows = []
        for fit in one.fits.values():
            ratio = NONE
            if base is not None and base.batch and fit.batch and fit.name != EAGER:
                ratio = f"{fit.batch / base.batch:.2f}×"
            style = "ours" if role(fit.name) == OURS else None
            shown = NONE if fit.batch is None else f"{fit.batch:,}"
            if fit.limit == "cap" and fit.batch is not None:
                shown = f"≥ {shown}"
            rows.append(([fit.name, shown, ratio, _limit(fit)], style))
        groups.append((one.title, rows))
    header = ["implementation", "largest batch", "times eager's", "what ended the search"]
    return table("Largest batch that fits", header, groups, wrapped=(3,))


def _limit(fit: Fit) -> str:
    failed = [(batch, reason) for batch, ok, reason in fit.tried if not ok]
    if not failed:
        return fit.reason or "no larger one was tried"
    batch, reason = min(failed, key=lambda one: one[0])
    return f"{batch:,}: {reason or 'it does not fit'}"


def reasons(found: Sequence[tuple[Case, Run]]) -> Markup:
    """Implementations without a speed, and why; what is said of several cases is said once."""
    cases_of: dict[tuple[str, str, str], list[str]] = {}
    for case, run in found:
        key = (run.name, run.status, run.reason or "no reason in the file")
        cases_of.setdefault(key, []).append(case.title)
    rows = []
    for (name, status, reason), titles in cases_of.items():
        titles = list(dict.fromkeys(titles))
        rest = len(titles) - _NAMED
        named = "; ".join(titles[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
        rows.append(([name, status, reason, named], None))
    header = ["implementation", "what became of it", "reason", "cases"]
    return table("No speed, and why", header, [("", rows)], left=(1,), wrapped=(2, 3))


def not_reached(found: Sequence[tuple[str, str, str]]) -> Markup:
    """Cases that the time of a sweep did not suffice for."""
    rows = [([case, file, reason], None) for file, case, reason in found]
    return table("Not reached", ["case", "file", "reason"], [("", rows)], left=(1,), wrapped=(2,))
