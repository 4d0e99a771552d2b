"""Cases measured one after the other, each in a fresh process, within a budget of time.

Every case ends as rows of the results file, whatever becomes of it: measured, or failed with the
reason. A sweep that is killed goes on where its file ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from . import choice, isolated, rows
from .compare import FAILED, SKIPPED
from .measure import Measured, Order, empty_case, in_order, measure
from .peers import EAGER
from .plan import Spec
from .progress import Progress
from .store import Store
from .traffic_model import Machine

_GRACE = 60.0  # seconds beyond its share, in which a case may come to an end
_LEAST = 5.0  # seconds below which no case is started
_LONGEST = 3600.0  # seconds of a case where there is no budget


@dataclass(frozen=True)
class Options:
    """How cases are measured.

    Attributes:
        names: implementations, None: the defaults of each case.
        rounds, threads, with_floor: as in `Order`.
        seconds: for all cases together, None: as long as they take.
    """

    names: list[str] | None = None
    rounds: int = 25
    threads: int = 1
    seconds: float | None = None
    with_floor: bool = False


@dataclass
class Sweep:
    """The cases still to measure, and what is known of how long they take.

    Args:
        specs: all cases, in order.
        options: how.
        store: where results go, loaded.
        facts: gives the environment, for a case whose process cannot tell.
        progress: shown to the user.
        clock: seconds.
    """

    specs: Sequence[Spec]
    options: Options
    store: Store
    facts: Callable[[], dict[str, Any]]
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    _took: list[tuple[Spec, float]] = field(default_factory=list)
    _machines: dict[str, Machine] = field(default_factory=dict)
    _end: float | None = None

    def run(self) -> None:
        """Measure every case that the store lacks; writes after each, and names what the time did
        not reach."""
        specs = {spec.name: spec for spec in self.specs}
        self._choose()
        missing = [specs[name] for name in self.store.missing()]
        if self.options.seconds is not None:
            self._end = self.clock() + self.options.seconds
        self.store.not_reached = {
            spec.name: "the sweep ended before" for spec in missing
        }  # fmt: skip
        self.store.write()
        for number, spec in enumerate(missing):
            left = self._left
            reason = self._unreachable(spec, left)
            if reason is not None:
                self.store.not_reached[spec.name] = reason
                self.store.write()
                self.progress.skip(spec.name, reason)
                continue
            share = None if left is None else max(left / (len(missing) - number), _LEAST)
            self.progress.start(spec.name, len(specs) - len(missing) + number, share)
            case = self._case(spec, share)
            self.store.put(spec.name, case)
            self.progress.finish(spec.name, rows.table_rows(case))

    @property
    def _left(self) -> float | None:
        return None if self._end is None else self._end - self.clock()

    def _choose(self) -> None:
        """Settle each case's implementations once, so that a resumed sweep has the same rows."""
        share = None
        if self.options.seconds is not None:
            share = self.options.seconds / len(self.specs)
        for spec in self.specs:
            if spec.name in self.store.chosen:
                continue
            if self.options.names is not None:
                self.store.chosen[spec.name] = [self.options.names, {}]
            else:
                self.store.chosen[spec.name] = list(choice.defaults(spec, share))

    def _unreachable(self, spec: Spec, left: float | None) -> str | None:
        """Why a case is not begun in the seconds that are left, or None."""
        if left is None:
            return None
        needed = _LEAST
        alike = [(s, took) for s, took in self._took if s.model == spec.model] or self._took
        if alike:
            like, took = alike[-1]
            needed = max(needed, took * max(1.0, spec.pixels / like.pixels))
        if left >= needed:
            return None
        return f"{max(left, 0):.0f} s were left, it needs about {needed:.0f} s"

    def _case(self, spec: Spec, share: float | None) -> dict[str, Any]:
        """Measure a case; an implementation that takes the process along is left out of the next
        attempt."""
        names, left_out = self.store.chosen[spec.name]
        without = {name: (SKIPPED, reason) for name, reason in left_out.items()}
        order = Order(
            spec, (*names, *left_out), without, self.options.rounds, self.options.threads, share,
            self.options.with_floor,
        )  # fmt: skip
        began = self.clock()
        while True:
            spent = self.clock() - began
            order = replace(
                order,
                machine=self._machines.get(spec.dtype),
                seconds=None if share is None else max(share - spent, _LEAST),
            )
            attempt = _Attempt(self.progress, partial(self._keep, order))
            try:
                measured = isolated.call(
                    measure, order, on_event=attempt.on_event, seconds=self._limit(share)
                )
            except isolated.IsolatedError as error:
                reason = attempt.reason(error)
                culprit = attempt.preparing
                if attempt.partial is not None:
                    # all but those that were being added
                    return self._partial(order, attempt.partial, reason)
                if error.crashed and culprit not in (None, EAGER) and self._may_repeat():
                    order = replace(order, without={**order.without, culprit: (FAILED, reason)})
                    continue
                return empty_case(spec, _failed(order, culprit, reason), self._facts())
            return self._measured(spec, measured)

    def _facts(self) -> dict[str, Any]:
        try:
            return self.facts()
        except isolated.IsolatedError as error:
            return {"reason": str(error)}

    def _limit(self, share: float | None) -> float:
        left = self._left
        if left is None:
            return _LONGEST
        # a hang must not take the time of all the others, a slow case may take more than its share:
        # what it has measured is worth nothing before it is checked
        return max(min(left, 4 * share), 2 * share, _LEAST) + _GRACE

    def _may_repeat(self) -> bool:
        return self._left is None or self._left > _LEAST

    def _measured(self, spec: Spec, measured: Measured) -> dict[str, Any]:
        self._took.append((spec, measured.least_seconds))
        if measured.machine is not None:
            self._machines[spec.dtype] = measured.machine
        return measured.case

    def _keep(self, order: Order, found: Measured) -> None:
        """Write what there is of a case, should this process be killed."""
        case = self._partial(order, found, "the sweep ended before it was measured")
        self.store.put(order.spec.name, case, partial=True)

    def _partial(self, order: Order, found: Measured, reason: str) -> dict[str, Any]:
        case = self._measured(order.spec, found)
        lost = {
            name: {"status": FAILED, "reason": reason}
            for name in order.names
            if name not in case["implementations"]
        }
        return {**case, "implementations": in_order(case["implementations"] | lost, order.names)}


class _Attempt:
    """What a measuring process said before it ended."""

    def __init__(self, progress: Progress, keep: Callable[[Measured], object]) -> None:
        self._keep = keep
        self.preparing: str | None = None
        self.partial: Measured | None = None
        self._doing = "starting"
        self._progress = progress

    def on_event(self, event: tuple) -> None:
        kind, *content = event
        if kind == "partial":
            (self.partial,) = content
            self._keep(self.partial)
            return
        if kind == "preparing":
            (self.preparing,) = content
            self._doing = f"preparing {self.preparing}"
        elif kind == "round":
            self.preparing = None
            self._doing = f"measuring, round {content[0]}"
        elif self.preparing is None:
            self._doing = content[0].rpartition(": ")[2]
        self._progress.event(kind, self._doing, *content)

    def reason(self, error: isolated.IsolatedError) -> str:
        return f"{error} (while {self._doing})" if error.crashed else str(error)


def _failed(order: Order, culprit: str | None, reason: str) -> dict[str, tuple[str, str]]:
    """Rows of a case that came to nothing: the one to blame failed, or all did together."""
    blamed = EAGER if culprit is None or culprit not in order.names else culprit
    found = {}
    for name in order.names:
        if name in order.without:
            found[name] = order.without[name]
        elif name == blamed:
            found[name] = (FAILED, reason)
        else:
            found[name] = (FAILED, f"the case ended early: {reason}")
    return found
