"""The time of a step operator by operator, beside the least that each could take.

The step runs under torch.profiler. What happens inside an operator of the step, as
`profile_operators` lists them, is that operator's time; what happens in none is nobody's: on a CPU
Python, autograd's engine and the loss scale, on a GPU the time in which no kernel runs.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from . import environment
from .profile_operators import Call, operators_of
from .timing import clock_for
from .traffic_model import Machine
from .workload import Step

BETWEEN = "between operators"
ELSEWHERE = "elsewhere"  # operators that ran more or less often than they were listed
_STEP = "fastres: step"
_WARM_STEPS, _TIMED_STEPS = 2, 5


@dataclass
class Row:
    """Operators of one name, of one step. Seconds."""

    operator: str
    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0
    floor_seconds: float = 0.0

    @property
    def gap(self) -> float:
        """Seconds above the floor."""
        return self.seconds - self.floor_seconds

    def __add__(self, other: Row) -> Row:
        """Both together, under the first one's name."""
        return Row(
            self.operator,
            self.calls + other.calls,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            self.flops + other.flops,
            self.floor_seconds + other.floor_seconds,
        )


@dataclass
class Profile:
    """A step's operators, the largest gap first, and the same by part of the network.

    Attributes:
        step_seconds: of a step; what the operators and what is between them add up to.
        unprofiled_seconds: the median of steps without the profiler.
    """

    step_seconds: float
    unprofiled_seconds: float
    machine: Machine
    operators: list[Row] = field(default_factory=list)
    parts: list[Row] = field(default_factory=list)

    @property
    def fused(self) -> list[Row]:
        """The operators of fastres."""
        ours = ("fastres::", "fastres_native::")
        return [row for row in self.operators if row.operator.startswith(ours)]

    def as_dict(self) -> dict[str, Any]:
        machine = {
            "name": self.machine.name,
            "bytes_per_second": self.machine.bandwidth,
            "flops_per_second": self.machine.matrix_rate,
            "source": self.machine.source,
        }
        return {
            "step_seconds": self.step_seconds,
            "unprofiled_seconds": self.unprofiled_seconds,
            "machine": machine,
            "operators": [dict(vars(row)) for row in self.operators],
            "parts": [
                {"part": row.operator, **{k: v for k, v in vars(row).items() if k != "operator"}}
                for row in self.parts
            ],
        }


def profile(step: Step, machine: Machine, *, steps: int = 3, trace: Path | None = None) -> Profile:
    """Run `step` a few times and attribute its time.

    Args:
        step: of a workload, eager or fused; of a compiled step or a CUDA graph the profiler does
            not see the operators.
        machine: which the floors are computed for.
        steps: how many are profiled; times are those of one.
        trace: a Chrome trace is written here (gzipped if it ends in ".gz").

    Raises:
        ValueError: `steps` is below 1.
        OSError: the trace cannot be written.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    device = step.workload.device
    for index in range(_WARM_STEPS):
        step(index)
    clock = clock_for(device)
    plain = median(clock(lambda index=index: step(index)) for index in range(_TIMED_STEPS))
    calls = operators_of(lambda: step(0), step.module)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    # acc_events: there is one cycle, and torch 2.11 warns that others would be dropped
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for index in range(steps):
            with record_function(_STEP):
                step(index)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if trace is not None:
        _export(profiler, trace)
    on_device = device.type == "cuda"
    events = profiler.events()
    times = list(_owners(events, {call.name for call in calls}, on_device))
    took = sum(one.cpu_time_total for one in events if one.name == _STEP) * 1e-6 / steps
    # the profiler slows a GPU's host, and not its kernels
    whole = plain if on_device else took
    return _attribute(times, calls, steps, Profile(whole, plain, machine), on_device)


def _owners(
    events: Sequence[Any], names: set[str], on_device: bool
) -> Iterator[tuple[int, str, float]]:
    """(an operator's identity, its name, seconds) of every event: the outermost operator of the
    step around it, or, in none, `BETWEEN`."""
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        owner, parent = None, event
        inside = False
        while parent is not None:
            if parent.name in names:
                owner = parent
            inside = inside or parent.name == _STEP
            parent = parent.cpu_parent
        if on_device:
            seconds = event.self_device_time_total * 1e-6
        elif inside:
            seconds = event.self_cpu_time_total * 1e-6
        else:
            continue  # the profiler's own
        if owner is None:
            yield 0, BETWEEN, seconds
        else:
            yield owner.id, owner.name, seconds


def _attribute(
    times: list[tuple[int, str, float]], calls: list[Call], steps: int, found: Profile,
    on_device: bool,
) -> Profile:  # fmt: skip
    seconds: dict[int, float] = defaultdict(float)
    seen: dict[str, dict[int, None]] = defaultdict(dict)
    between = 0.0
    for identity, name, spent in times:
        if name == BETWEEN:
            between += spent
            continue
        seconds[identity] += spent
        seen[name][identity] = None
    rows: dict[str, Row] = {}
    parts: dict[str, Row] = {}
    for name, same in _by_name(calls, set(seen)).items():
        rows[name] = Row(name)
        for call in same:
            for row in (rows[name], parts.setdefault(call.part, Row(call.part))):
                row.calls += 1
                row.bytes += call.bytes
                row.flops += call.flops
                row.floor_seconds += call.floor(found.machine)
        # the profiler's operators begin in the order in which they were dispatched
        identities = sorted(seen[name])
        matched = len(identities) == steps * len(same)
        for number, identity in enumerate(identities):
            part = same[number % len(same)].part if matched else ELSEWHERE
            for row in (rows[name], parts.setdefault(part, Row(part))):
                row.seconds += seconds[identity] / steps
    summed = sum(row.seconds for row in rows.values())
    rest = found.step_seconds - summed if on_device else between / steps
    if rest > 0:
        rows[BETWEEN], parts[BETWEEN] = (Row(BETWEEN, seconds=rest) for _ in range(2))
    shown = [row for row in rows.values() if row.seconds > 0 or row.bytes or row.flops]
    found.operators = sorted(shown, key=lambda row: -row.gap)
    found.parts = list(parts.values())
    return found


def _by_name(calls: list[Call], seen: set[str]) -> dict[str, list[Call]]:
    """The calls of each operator. Where modes are on, as when they were listed, autograd adds
    gradients out of place: those that were not seen so were in place."""
    found: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        in_place = f"{call.name}_"
        found[in_place if call.name not in seen and in_place in seen else call.name].append(call)
    return found


def _export(profiler: torch.profiler.profile, path: Path) -> None:
    """Write the trace at once: whoever opens the file finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".json.gz" if path.suffix == ".gz" else ".json"
    handle, temporary = tempfile.mkstemp(prefix=".trace.", suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        profiler.export_chrome_trace(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def record(
    step: Step, found: Profile, *, model: str, image_size: int, implementation: str,
    trace: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """A profile as a results file's "profiles" hold it."""
    workload = step.workload
    return {
        "model": model,
        "batch": workload.batch,
        "dtype": str(workload.autocast or torch.float32).removeprefix("torch."),
        "image_size": image_size,
        "device": str(workload.device),
        "implementation": implementation,
        "kind": "infer" if workload.inference else "train",
        **found.as_dict(),
        "trace": None if trace is None else trace.name,
        "environment": environment.record(workload.device),
    }
