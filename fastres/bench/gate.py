"""Two results files beside each other: what has become slower, and how surely."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from ..training.errors import UsageError
from . import choice, results
from .compare import MEASURED
from .peers import EAGER
from .rows import is_noisy
from .table import duration

LEAST = 4  # rounds of each file below which no interval holds 95%
SLOWER, FASTER, SAME, UNCERTAIN, LOST, FEW = (
    "SLOWER", "faster", "same", "cannot tell", "LOST", "too few rounds",
)  # fmt: skip
HEADER = ("implementation", "old", "new", "new / old [95%]", f"the same over {EAGER} [95%]", "")


@dataclass(frozen=True)
class Shift:
    """How many times the old value the new one is.

    `low` and `high` hold it with at least 95% probability whatever the noise's distribution
    (Mann and Whitney's test turned around), as far as rounds are independent of each other.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, old: Sequence[float], new: Sequence[float]) -> Shift:
        """From samples of both. Raises ValueError where there are fewer than `LEAST` of one."""
        if min(len(old), len(new)) < LEAST:
            raise ValueError(
                f"old and new must have at least {LEAST} rounds, got {len(old)} and {len(new)}"
            )
        ratios = sorted(b / a for a in old for b in new)
        outside = _outside(len(old), len(new))
        return cls(median(ratios), ratios[outside], ratios[-1 - outside])

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@lru_cache(maxsize=64)
def _outside(m: int, n: int) -> int:
    """How many of the m n ratios to leave out at each end, so that 95% are inside."""
    # how many of the ways to rank m + n samples have each value of Mann and Whitney's statistic:
    # the coefficients of the Gaussian binomial
    ways = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for power in range(m * n, n + i - 1, -1):
            ways[power] -= ways[power - n - i]
        for power in range(i, m * n + 1):
            ways[power] += ways[power - i]
    total, below, least = math.comb(m + n, m), 0, 0
    for count in ways:
        below += count
        if below > 0.025 * total:
            break
        least += 1
    # P(statistic < least) <= 2.5%, and least > 0 from LEAST samples on
    return least - 1 if least else 0


@dataclass(frozen=True)
class Row:
    """One implementation of one case in both files.

    Attributes:
        old, new: median seconds, None where it was not measured.
        raw: of its seconds; relative: of its seconds over the baseline's in the same round, in
            which a drift of the machine cancels. None where that cannot be told.
        verdict: by `relative` where there is one.
        reason: why it was lost, or "noisy".
    """

    case: str
    implementation: str
    old: float | None
    new: float | None
    raw: Shift | None
    relative: Shift | None
    verdict: str
    reason: str = ""

    @property
    def decides(self) -> bool:
        """Whether the gate asks for it: peers may become slower, fastres may not."""
        return choice.is_ours(self.implementation)

    @property
    def failed(self) -> bool:
        return self.decides and self.verdict in (SLOWER, LOST)


def load(path: Path) -> dict[str, Any]:
    """The cases of a results file.

    Raises:
        UsageError: it is missing or holds none.
    """
    if not path.exists():
        raise UsageError(f"compare: there is no file {path}")
    try:
        content = results.read(path)
    except ValueError as error:
        raise UsageError(f"compare: {error}") from None
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, dict) or not cases:
        raise UsageError(f"compare: {path} holds no cases of a benchmark")
    return cases


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], threshold: float
) -> tuple[list[Row], list[str]]:
    """A row for each implementation that the old cases measured and the new ones have, and the
    old cases that the new file does not have.

    Args:
        threshold: relative: 0.05 lets a time grow by 5%.
    """
    found = [
        row
        for name, case in old.items()
        if name in new
        for row in _rows(name, case, new[name], threshold)
    ]
    return found, [name for name in old if name not in new]


def _rows(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], threshold: float
) -> Iterator[Row]:
    for implementation, before in old["implementations"].items():
        if before["status"] != MEASURED or "seconds" not in before:
            continue
        after = new["implementations"].get(implementation, {"status": "not in the new file"})
        was = before["seconds"]["median"]
        if "seconds" not in after:
            reason = after.get("reason") or after["status"]
            yield Row(name, implementation, was, None, None, None, LOST, reason)
            continue
        raw = _shift(_rounds(before), _rounds(after))
        relative = None
        if implementation != EAGER:
            relative = _shift(_relative(old, implementation), _relative(new, implementation))
        deciding = relative or raw
        noisy = "noisy" if any(map(_noisy, (before, after))) else ""
        yield Row(
            name, implementation, was, after["seconds"]["median"], raw, relative,
            _verdict(deciding, threshold), noisy,
        )  # fmt: skip


def _rounds(row: Mapping[str, Any]) -> list[float]:
    return row["seconds"].get("rounds", [])


def _relative(case: Mapping[str, Any], implementation: str) -> list[float]:
    found = case["implementations"]
    if "seconds" not in found.get(EAGER, {}):
        return []
    ours, baseline = _rounds(found[implementation]), _rounds(found[EAGER])
    return [a / b for a, b in zip(ours, baseline, strict=False)]


def _shift(old: Sequence[float], new: Sequence[float]) -> Shift | None:
    return Shift.of(old, new) if min(len(old), len(new)) >= LEAST else None


def _noisy(row: Mapping[str, Any]) -> bool:
    return is_noisy(row.get("times_faster_than", {}).get(EAGER) or row["seconds"])


def _verdict(shift: Shift | None, threshold: float) -> str:
    if shift is None:
        return FEW
    if shift.low > 1 + threshold:
        return SLOWER
    if shift.high < 1 / (1 + threshold):
        return FASTER
    if shift.high <= 1 + threshold and shift.low >= 1 / (1 + threshold):
        return SAME
    return UNCERTAIN


def table_rows(found: Sequence[Row]) -> list[list[str]]:
    """By `HEADER`, under a line for each case."""
    told, last = [], None
    for row in found:
        if row.case != last:
            told.append([row.case, "", "", "", "", ""])
            last = row.case
        told.append(
            [
                f"  {row.implementation}",
                "" if row.old is None else duration(row.old),
                "" if row.new is None else duration(row.new),
                "" if row.raw is None else str(row.raw),
                "" if row.relative is None else str(row.relative),
                ", ".join(filter(None, (row.verdict, row.reason))),
            ]
        )
    return told


def conditions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between the conditions of the two files, a line each."""
    told = []
    for what, path in (
        ("device", ("device", "name")), ("threads", ("device", "cpu", "threads")),
        ("torch", ("torch",)), ("fastres", ("fastres",)), ("commit", ("commit",)),
    ):  # fmt: skip
        sides = [sorted({_at(case, path) for case in cases.values()}) for cases in (old, new)]
        if sides[0] != sides[1]:
            told.append(f"{what}: old {', '.join(sides[0])}; new {', '.join(sides[1])}")
    return told


def _at(case: Mapping[str, Any], path: Sequence[str]) -> str:
    value: Any = case.get("environment", {})
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "unknown" if value is None else str(value)
