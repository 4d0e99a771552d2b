"""Which cases belong together: the ones to tell first, sweeps, and one case over time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..compare import MEASURED
from ..peers import FUSED, OPTIMIZED
from .records import Case, Results, Run

_DTYPE_ORDER = {"fp32": 0, "bf16": 1, "fp16": 2}
_FEWEST = 3  # points that a sweep has at least


def depth(model: str | None) -> int | None:
    """Layers of "resnet50" or "torchvision.resnet50"; None of what is named otherwise."""
    found = re.fullmatch(r"(?:\w+\.)?(?:resnet|plain)(\d+)", model or "")
    return int(found[1]) if found else None


def latest(results: Results, kind: str, device: str) -> list[Case]:
    """The cases of a kind on a device, the newest of each title; large networks first."""
    found: dict[str, Case] = {}
    for case in by_date(case for case in results.cases if case.device == device):
        if case.kind == kind:
            found[case.title] = case
    return sorted(found.values(), key=_size)


def by_date(cases: Iterable[Case]) -> list[Case]:
    """Oldest first."""
    return sorted(cases, key=lambda case: str(case.environment.get("date", "")))


def _size(case: Case) -> tuple:
    deep = depth(case.model)
    return (
        bool(case.note),
        -(case.image_size or 0),
        -(deep or 0),
        case.model or "",
        _DTYPE_ORDER.get(case.dtype, 9),
        case.batch,
        case.name,
    )


def ours(case: Case) -> Run | None:
    """The run of fastres that a case is about, None if it was not measured."""
    names = (OPTIMIZED, FUSED) if case.kind == "infer" else (FUSED,)
    for name in names:
        run = case.runs.get(name)
        if run is not None and run.status == MEASURED and run.seconds is not None:
            return run
    return None


def representative(cases: Sequence[Case]) -> list[Case]:
    """The plain case of each network and dtype at its usual image size and with the largest batch,
    of inference also with a single image; only those with a ratio to eager channels_last."""
    plain = [case for case in cases if not case.note and _has_ratio(case)]
    sizes = Counter((case.model, case.dtype, case.image_size) for case in plain)

    def preference(case: Case) -> tuple:
        usual = sizes[case.model, case.dtype, case.image_size]
        return usual, case.batch, case.image_size or 0

    best: dict[Hashable, Case] = {}
    for case in plain:
        single = case.kind == "infer" and case.batch == 1
        key = (case.device, case.kind, case.model, case.dtype, single)
        if key not in best or preference(case) > preference(best[key]):
            best[key] = case
    return sorted(best.values(), key=_size)


def _has_ratio(case: Case) -> bool:
    run = ours(case)
    return run is not None and run.ratio is not None


def apart(cases: Sequence[Case]) -> list[Case]:
    """Without those that are a point of a curve and nothing else."""
    swept = [case for sweep in sweeps(cases) for _, case in sweep.cases]
    shown = representative(cases)
    # where there is no ratio, the last of each curve stands for it
    last = [sweep.cases[-1][1] for sweep in sweeps(cases)]
    kept = [case for case in last if not _has_ratio(case)]
    return [case for case in cases if case in shown or case in kept or case not in swept]


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one number only, ascending.

    Attributes:
        over: "batch", "depth" or "image size".
        fixed: what is the same in all of them.
    """

    over: str
    fixed: str
    cases: tuple[tuple[int, Case], ...]


def sweeps(cases: Sequence[Case]) -> list[Sweep]:
    """Those of at least three points among cases of one kind and device."""

    def batch(case: Case):
        key = (case.model, case.dtype, case.image_size)
        return case.batch, key, _fixed(case, batch=False)

    def layers(case: Case):
        key = (case.model or "").rstrip("0123456789"), case.dtype, case.batch, case.image_size
        return depth(case.model), key, _fixed(case, model=False)

    def pixels(case: Case):
        key = (case.model, case.dtype, case.batch)
        return case.image_size, key, _fixed(case, size=False)

    ways: dict[str, Callable] = {"batch": batch, "depth": layers, "image size": pixels}
    found = []
    for over, way in ways.items():
        groups: dict[Hashable, tuple[str, dict[int, Case]]] = {}
        for case in cases:
            value, key, fixed = way(case)
            if value is not None and case.model is not None:
                groups.setdefault((*key, case.note, case.optimizer), (fixed, {}))[1].setdefault(
                    value, case
                )
        for fixed, points in groups.values():
            if len(points) >= _FEWEST:
                found.append(Sweep(over, fixed, tuple(sorted(points.items()))))
    return found


def _fixed(case: Case, *, model: bool = True, batch: bool = True, size: bool = True) -> str:
    named = case.model if model else (case.model or "").rstrip("0123456789") + "s"
    parts = [f"{named} {case.dtype}"]
    if batch:
        parts.append(f"batch {case.batch}")
    if size and case.image_size is not None:
        parts.append(f"{case.image_size}×{case.image_size}")
    if case.optimizer:
        parts.append("SGD")
    return ", ".join([*parts, case.note] if case.note else parts)


def history(results: Results, device: str) -> list[list[Case]]:
    """Cases of one kind and title on one device that were measured at least twice, oldest first."""
    groups: dict[Hashable, list[Case]] = {}
    for case in by_date(case for case in results.cases if case.device == device):
        if not _has_ratio(case):
            continue
        group = groups.setdefault((case.kind, case.title), [])
        if all(case.environment != other.environment for other in group):
            group.append(case)
    return [group for group in groups.values() if len(group) > 1]


def unmeasured(results: Results) -> list[tuple[Case, Run]]:
    """What was refused, failed or skipped, and any other run without a time that has a reason."""
    return [
        (case, run)
        for case in results.cases
        for run in case.runs.values()
        if run.status != MEASURED
    ]
