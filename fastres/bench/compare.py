"""Implementations of one workload side by side: prepared, checked, then timed in turns."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import peers
from .parity import Verdict, judge, reference_step
from .timing import Ratio, Summary, clock_for, interleave, wall_clock
from .workload import Observation, Step, Workload

try:
    import resource
except ImportError:  # not on Windows
    resource = None

MEASURED, SKIPPED, REFUSED, FAILED = "measured", "skipped", "refused", "failed"
_SAMPLE_SECONDS = {"cpu": 0.02, "cuda": 0.05}  # a sample shorter than this holds several calls
_WARM_CALLS = 2


@dataclass
class Entry:
    """One implementation: its step while it may be timed, its times, or why it has none."""

    name: str
    status: str
    reason: str | None = None
    step: Step | None = None
    make_seconds: float | None = None
    first_call_seconds: float | None = None
    found: Observation | None = None  # until it has been checked
    verdict: Verdict | None = None
    page_faults: float | None = None  # per call, on a CPU
    samples: list[float] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)


class Comparison:
    """Implementations of `workload`, the baseline (eager channels_last) among them.

    `floor` is what `floor.of` says of the workload, where somebody has asked.

    Args:
        workload: what every implementation does.
        reference: what it must compute; by default plain PyTorch in higher precision.
        log: told one line for each thing that takes time.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        reference: Observation | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.workload = workload
        self.entries: dict[str, Entry] = {}
        self.calls_per_sample = 1
        self.floor: dict[str, Any] | None = None
        self._reference = reference
        self._baseline: Observation | None = None
        self._log = log

    @property
    def dtype(self) -> torch.dtype:
        return self.workload.autocast or torch.float32

    def prepare(self, *names: str | peers.Peer, limit: float | None = None) -> None:
        """Make implementations, keep what their first step computes and warm them up; the baseline
        comes first.

        What cannot run is skipped, what raises noted as failed, each with the reason. `limit` is
        in seconds, for one implementation.

        Raises:
            Exception: whatever the baseline raises: without it there is nothing to compare with.
        """
        if peers.EAGER not in self.entries:
            self._prepare_baseline()
        for name in names:
            peer = peers.get(name) if isinstance(name, str) else name
            if peer.name not in self.entries:
                self.entries[peer.name] = self._prepare(peer, limit)

    def _prepare_baseline(self) -> None:
        peer = peers.get(peers.EAGER)
        while True:
            try:
                self.entries[peer.name] = self._made(peer)
                return
            except FloatingPointError:
                if self.workload.loss_scale < 1:
                    raise
                # every implementation gets the scale at which PyTorch does not overflow
                scale = self.workload.loss_scale / 16
                self.workload = replace(self.workload, loss_scale=scale)

    def _prepare(self, peer: peers.Peer, limit: float | None) -> Entry:
        reason = peer.unavailable(self.workload)
        if reason is not None:
            return Entry(peer.name, SKIPPED, reason)
        self._log(f"{self.workload.name}: {peer.name}")
        started = time.perf_counter()
        try:
            with peers.preparing(limit):
                return self._made(peer)
        except TimeoutError as error:
            return Entry(peer.name, SKIPPED, f"not ready in time: {error}")
        except Exception as error:
            spent = time.perf_counter() - started
            return Entry(peer.name, FAILED, f"after {spent:.0f} s: {describe(error)}")

    def check(self) -> None:
        """Compare what was computed with the reference; what differs is refused and loses its
        times.

        Comes after the timing, by `measure`: a step in higher precision leaves malloc with larger
        thresholds and free memory, and eager PyTorch then has no page faults to pay for.

        Raises:
            RuntimeError: the baseline itself computes something else.
        """
        unchecked = [entry for entry in self.entries.values() if entry.found is not None]
        if not unchecked:
            return
        if self._reference is None:
            self._log(f"{self.workload.name}: reference in higher precision")
            self._reference = reference_step(self.workload)
        if self._baseline is None:
            self._baseline = self.entries[peers.EAGER].found
        for entry in unchecked:
            verdict = judge(entry.found, self._baseline, self._reference, self.dtype)
            entry.verdict, entry.found = verdict, None
            if verdict.agrees:
                continue
            if entry.name == peers.EAGER:
                raise RuntimeError(f"{entry.name} is the baseline but differs: {verdict.reason}")
            entry.status, entry.reason = REFUSED, verdict.reason
            entry.samples, entry.step, entry.page_faults = [], None, None

    def _made(self, peer: peers.Peer) -> Entry:
        entry = Entry(peer.name, MEASURED)
        clock = wall_clock(self.workload.device)

        def make() -> None:
            entry.step = peer.make(self.workload)

        def first_call() -> None:
            if peer.bound:
                entry.step(0)
            else:
                entry.found = entry.step.observe()

        entry.make_seconds = clock(make)
        entry.first_call_seconds = clock(first_call)
        for index in range(_WARM_CALLS):
            entry.step(index)
        return entry

    def measure(
        self,
        rounds: int,
        *,
        only: Sequence[str] | None = None,
        seconds: float | None = None,
        least: int = 1,
        on_round: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Time everything prepared (or `only` these) in interleaved rounds, in place of older
        times, then `check` it; after `seconds` no further round starts, once there are `least`."""
        ready = {
            entry.name: entry
            for entry in self.entries.values()
            if entry.status == MEASURED and (only is None or entry.name in only)
        }
        device = self.workload.device
        clock = clock_for(device)
        once = min(clock(lambda: ready[peers.EAGER].step(0)) for _ in range(3))
        self.calls_per_sample = max(1, round(_SAMPLE_SECONDS[device.type] / max(once, 1e-6)))
        times = interleave(
            {name: entry.step for name, entry in ready.items()},
            rounds,
            clock=clock,
            calls_per_sample=self.calls_per_sample,
            deadline=None if seconds is None else time.monotonic() + seconds,
            least=least,
            on_round=on_round,
        )
        for name, samples in times.items():
            ready[name].samples = samples
            ready[name].page_faults = _page_faults(ready[name].step)
        self.check()

    def ratio(self, ours: str = peers.FUSED, peer: str = peers.EAGER) -> Ratio | None:
        """How many times faster `ours` is than `peer`; None where one was not timed."""
        pair = [self.entries.get(name) for name in (ours, peer)]
        if any(entry is None or not entry.samples for entry in pair):
            return None
        return Ratio.of(pair[0].samples, pair[1].samples)

    def as_dict(self) -> dict[str, Any]:
        """Everything that was found, for a results file."""
        return {
            "workload": self.workload.name,
            "kind": self.workload.kind,
            "model": self.workload.model,
            "image_size": self.workload.image_size,
            "batch": self.workload.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.workload.device),
            "optimizer": self.workload.optimizer,
            "calls_per_sample": self.calls_per_sample,
            "floor": self.floor,
            "implementations": {name: self._row(e) for name, e in self.entries.items()},
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        row: dict[str, Any] = {"status": entry.status}
        if entry.reason is not None:
            row["reason"] = entry.reason
        if entry.verdict is not None:
            row["parity"] = {
                "worst": entry.verdict.worst,
                "error": entry.verdict.error,
                "bound": entry.verdict.bound,
            }
        if entry.samples:
            summary = Summary.of(entry.samples)
            row["seconds"] = {**summary.as_dict(), "rounds": entry.samples}
            row["per_second"] = self.workload.batch / summary.median
            row["page_faults"] = entry.page_faults
            row["make_seconds"] = entry.make_seconds
            row["first_call_seconds"] = entry.first_call_seconds
            against = {}
            for peer in self.entries:
                ratio = self.ratio(entry.name, peer) if peer != entry.name else None
                if ratio is not None:
                    against[peer] = ratio.as_dict()
            row["times_faster_than"] = against
        if entry.memory:
            row["memory"] = entry.memory
        return row


def _page_faults(step: Step, calls: int = 3) -> float | None:
    """Page faults of one call: pages that the system had to give the process, 0.1 to 1 us each."""
    if resource is None or step.workload.device.type != "cpu":
        return None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for index in range(calls):
        step(index)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls


def describe(error: BaseException) -> str:
    """An error in one line, with the place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}{where}"
