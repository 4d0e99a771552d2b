"""One case of a sweep, measured in the process that this is called in."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from . import cases, choice, environment, floor, isolated, memory, traffic_model_machines
from .case import keep_memory
from .compare import FAILED, MEASURED, SKIPPED, Comparison, Entry, describe
from .peers import EAGER, FUSED
from .plan import MEMORY, Spec
from .traffic_model import Machine
from .workload import Workload

LEAST_ROUNDS = 5  # taken even where the time is up
_CHECK = 5  # first calls of the baseline that a reference in higher precision takes (measured: 3)
_ROUNDS_LEAST = 15.0  # seconds that the rounds after a compilation need
_PREPARE_LEAST = 10.0  # seconds that an implementation has in any case
_FAULTS = 3  # calls of each implementation after its last round
_CPU_STEPS = 3  # of a memory measurement


@dataclass(frozen=True)
class Order:
    """What the measuring process is asked for; can be pickled.

    Attributes:
        spec: the case.
        names: implementations, the baseline first.
        without: rows of implementations that are left out: (status, reason).
        rounds: interleaved rounds, fewer where `seconds` are over before.
        threads: of a CPU measurement.
        seconds: for all of it, None: as long as it takes.
        with_floor: add the byte-and-flop floor.
        machine: of the floor, None: measured.
    """

    spec: Spec
    names: tuple[str, ...]
    without: dict[str, tuple[str, str]] = field(default_factory=dict)
    rounds: int = 25
    threads: int = 1
    seconds: float | None = None
    with_floor: bool = False
    machine: Machine | None = None


@dataclass(frozen=True)
class Measured:
    """A case for a results file, and what it took.

    Attributes:
        case: as `results` has it.
        least_seconds: what it would have taken with `LEAST_ROUNDS`.
        machine: of the floor.
    """

    case: dict[str, Any]
    least_seconds: float
    machine: Machine | None = None


def measure(report: isolated.Report, order: Order) -> Measured:
    """Measure a case; reports ("preparing", implementation), ("round", number, of how many),
    ("note", what else it does) and, once something is worth keeping, ("partial", `Measured`).

    Raises:
        Exception: what the baseline raises: without it there is nothing to compare with.
    """
    torch.set_num_threads(order.threads)
    if order.spec.keep_memory:
        keep_memory()
    if order.spec.device.startswith("cuda"):
        # for every implementation alike
        torch.backends.cudnn.benchmark = True
    if order.spec.kind == MEMORY:
        return _measure_memory(report, order)
    return _Timing(report, order).run()


class _Timing:
    """One measurement: what is asked for, what was found and when it began."""

    def __init__(self, report: isolated.Report, order: Order) -> None:
        self.report, self.order = report, order
        self.began = time.monotonic()
        self.comparison = Comparison(order.spec.workload(), log=lambda line: report(("note", line)))
        self.rounds_took = 0.0
        self.machine = order.machine
        for name, (status, reason) in order.without.items():
            self.comparison.entries[name] = Entry(name, status, reason)

    @property
    def left(self) -> float | None:
        """Seconds of the case that are left."""
        if self.order.seconds is None:
            return None
        return self.order.seconds - (time.monotonic() - self.began)

    def run(self) -> Measured:
        waves = self._waves([name for name in self.order.names if name not in self.order.without])
        for number, names in enumerate(waves, 1):
            last = number == len(waves)
            self._prepare(names, last=last)
            self._time(last=last)
            if not last:
                self.report(("partial", self._measured()))
        if self.order.with_floor:
            self._add_floor()
        return self._measured()

    def _waves(self, names: list[str]) -> list[list[str]]:
        """Implementations that are prepared and timed together with those of the waves before.

        On a GPU those that compile come last, should they take the process along. On a CPU the
        check of a first wave would spare the second one its page faults.
        """
        slow = [name for name in names if choice.is_slow(name)]
        if not slow or self.comparison.workload.device.type != "cuda":
            return [names]
        return [[name for name in names if name not in slow], slow]

    def _prepare(self, names: list[str], *, last: bool) -> None:
        """Make implementations within what is left; with `last` only their rounds come after."""
        for number, name in enumerate(names):
            self.report(("preparing", name))
            limit = None
            if self.left is not None:
                # ours compiles its kernels where nobody has, and without it all is in vain
                ours = choice.is_ours(name)
                share = 1 if ours else max(len(names) - number, 1 if last else 2)
                limit = max((self.left - _ROUNDS_LEAST) / share, _PREPARE_LEAST)
            self.comparison.prepare(choice.resolve(name), limit=limit)
            if self.comparison.workload.device.type == "cuda":
                torch.cuda.empty_cache()
                self._note_memory(self.comparison.entries[name])

    def _note_memory(self, entry: Entry) -> None:
        if entry.status != MEASURED or entry.memory:
            return
        try:
            entry.memory = memory.cuda_peak(entry.step)
            if entry.name in (EAGER, FUSED) and not self.comparison.workload.inference:
                entry.memory["saved_bytes"] = memory.saved_bytes(entry.step)
        except RuntimeError as error:  # out of memory is one
            entry.memory = {"reason": describe(error)}

    def _time(self, *, last: bool) -> None:
        """Time what is prepared; before the last wave in less than half of what is left."""
        seconds = self.left
        rounds = self.order.rounds
        if seconds is not None:
            seconds = max((seconds if last else seconds / 3) - self._reserve(), 0.0)
        started = time.monotonic()
        done = 0

        def on_round(number: int) -> None:
            nonlocal done
            done = number
            self.report(("round", number, rounds))

        least = min(LEAST_ROUNDS, rounds)
        self.comparison.measure(rounds, seconds=seconds, least=least, on_round=on_round)
        if done > least:
            took = time.monotonic() - started
            self.rounds_took += took * (done - least) / (done + 1)

    def _reserve(self) -> float:
        """Seconds that are needed after the last round, by the first calls."""
        entries = [entry for entry in self.comparison.entries.values() if entry.step is not None]
        once = self.comparison.entries[EAGER].first_call_seconds or 0.0
        if self.comparison.workload.device.type == "cuda":
            return 2 * once + 1
        warm = sum(min(entry.first_call_seconds or 0.0, 2 * once) for entry in entries)
        return _CHECK * once + _FAULTS * warm

    def _add_floor(self) -> None:
        workload = self.comparison.workload
        try:
            if self.machine is None:
                dtype = cases.DTYPES[self.order.spec.dtype] or torch.float32
                self.machine = traffic_model_machines.measured(workload.device, dtype)
            self.comparison.floor = floor.of(workload, self.machine)
        except Exception as error:  # a floor is not worth a measurement
            print(f"no floor: {describe(error)}", flush=True)

    def _measured(self) -> Measured:
        took = time.monotonic() - self.began - self.rounds_took
        return Measured(_case(self.order, self.comparison.as_dict()), took, self.machine)


def _case(order: Order, found: dict[str, Any]) -> dict[str, Any]:
    """A case as results files hold it: named by its spec, with its environment."""
    found |= {
        "workload": order.spec.name, "kind": order.spec.kind, "model": order.spec.model,
        "image_size": order.spec.image_size,
    }  # fmt: skip
    found["implementations"] = in_order(found["implementations"], order.names)
    found["environment"] = environment.record(torch.device(order.spec.device))
    return found


def in_order(implementations: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Rows in the order of `names`, the others after them."""
    return {
        name: implementations[name]
        for name in dict.fromkeys([*names, *implementations])
        if name in implementations
    }


def empty_case(
    spec: Spec, rows: dict[str, tuple[str, str]], facts: dict[str, Any]
) -> dict[str, Any]:
    """A case in which nothing was measured: a status and a reason for each implementation."""
    dtype = cases.DTYPES[spec.dtype] or torch.float32
    return {
        "workload": spec.name, "kind": spec.kind, "model": spec.model,
        "image_size": spec.image_size, "batch": spec.batch,
        "dtype": str(dtype).removeprefix("torch."), "device": spec.device,
        "optimizer": spec.optimizer, "calls_per_sample": 1, "floor": None,
        "implementations": {
            name: {"status": status, "reason": reason} for name, (status, reason) in rows.items()
        },
        "environment": facts,
    }  # fmt: skip


def _measure_memory(report: isolated.Report, order: Order) -> Measured:
    """Peak memory of each implementation over its first steps, and what it keeps for backward."""
    began = time.monotonic()
    workload = order.spec.workload()
    rows = dict(order.without)
    found: dict[str, dict[str, Any]] = {}
    for name in order.names:
        if name in rows:
            continue
        report(("preparing", name))
        reason = choice.resolve(name).unavailable(workload) or _no_peak(workload)
        if reason is not None:
            rows[name] = (SKIPPED, reason)
            continue
        try:
            found[name] = _peak(order, name)
        except isolated.IsolatedError as error:
            rows[name] = (FAILED, str(error))
    case = empty_case(order.spec, rows, environment.record(workload.device))
    measured = {name: {"status": MEASURED, "memory": peak} for name, peak in found.items()}
    case["implementations"] = in_order(case["implementations"] | measured, order.names)
    return Measured(case, time.monotonic() - began)


def _no_peak(workload: Workload) -> str | None:
    return None if workload.device.type == "cuda" else memory.cpu_unavailable()


def _peak(order: Order, name: str) -> dict[str, Any]:
    left = None if order.seconds is None else max(order.seconds, 30.0)
    return isolated.call(_peak_here, order, name, seconds=left)


def _peak_here(report: isolated.Report, order: Order, name: str) -> dict[str, Any]:
    torch.set_num_threads(order.threads)
    workload, peer = order.spec.workload(), choice.resolve(name)
    if workload.device.type != "cuda":
        return memory.growth(workload, peer, _CPU_STEPS)
    step = peer.make(workload)
    step(0)  # the momentum is there before anything is measured
    gc.collect()
    found = memory.cuda_peak(step)
    if step.forward is step.module:
        found["saved_bytes"] = memory.saved_bytes(step)
    return found
