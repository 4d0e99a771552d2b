"""Stages of the suite for the kernels of a training step: compiled, and each beside its floor."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import torch

from . import table
from .compile_ahead import Compiler, Target, Wanted
from .operator_calls import Call, record_step
from .operator_inputs import make_arguments
from .replay import copies_needed, on_device
from .suite_stages import Recorder, ceilings
from .timing import Summary, clock_for, interleave
from .traffic_model import Machine

_SHOWN = 25


def compile_kernels(recorder: Recorder) -> None:
    """Stage: compile the kernels of the networks' steps on all cores, for the stages after it."""
    sizes = recorder.sizes

    def run() -> None:
        wanted = []
        for network, dtype in ((sizes.deep, "bf16"), (sizes.deep, "fp16"), (sizes.shallow, "bf16")):
            calls = record_step(network, sizes.batch, dtype, sizes.image)
            wanted += [Wanted(call) for call in calls][: sizes.compiled]
        began = time.monotonic()
        processes = os.cpu_count() or 1
        with Compiler(Target.of(recorder.device), processes) as compiler:
            errors = compiler.finish(wanted, began + max(recorder.left - 5, 1))
        found = {"calls": len(wanted), "seconds": time.monotonic() - began, "errors": errors}
        recorder.put("compiled", found)
        print(f"{len(wanted)} calls, {found['seconds']:.0f} s, {len(errors)} errors", flush=True)

    recorder.attempt("compile", run)


def kernels(recorder: Recorder) -> None:
    """Stage: the operators of the deep network's step, those that move most first.

    The floor is that of the byte-and-flop model with this device's own copy bandwidth and product
    rate; `gap_seconds` is what a step would gain if the operator ran at its floor.
    """
    sizes, device = recorder.sizes, recorder.device
    dtype = sizes.dtypes[0]
    most = ceilings(recorder)
    bandwidth, rate = most["copy_bytes_per_second"], most[f"{dtype}_operations_per_second"]
    machine = Machine(str(device), bandwidth, rate, "measured")
    calls = record_step(sizes.deep, sizes.batch, dtype, sizes.image)
    rows: list[dict[str, Any]] = []
    ordered = sorted(calls, key=lambda call: -call.nbytes * calls[call])
    for call in ordered:
        measure = partial(_append_row, rows, recorder, call, calls[call], machine)
        recorder.attempt(str(call), measure, minimum=3.0)
        recorder.content["parts"]["operators"] = rows
    missing = len(ordered) - len(rows)
    recorder.put("totals", _totals(rows) | {"operators_not_measured": missing})
    rows.sort(key=lambda row: -row["gap_seconds"])
    recorder.put("operators", rows)
    header = ["operator", "calls", "time", "floor", "floor / time", "gap in a step"]
    title = f"{sizes.deep} {dtype}, batch {sizes.batch}: the {_SHOWN} largest gaps of {len(rows)}"
    table.print_table(title, header, [_cells(row) for row in rows[:_SHOWN]])


def _append_row(rows: list, *arguments: Any) -> None:
    rows.append(_row(*arguments))


def _row(recorder: Recorder, call: Call, count: int, machine: Machine) -> dict[str, Any]:
    # imported on first use: `import fastres.bench` must not import Triton
    from .operator_choices import choices_of, operations_of

    device = recorder.device
    operations = operations_of(call)
    floor = sum(machine.seconds(operation) for operation in operations)
    copies = copies_needed(call.nbytes, device)
    sets = [make_arguments(call, device, seed) for seed in range(copies)]
    operator = getattr(torch.ops.fastres, call.operator)
    sample = on_device(operator, sets, device)
    taken = interleave(
        {"operator": sample}, recorder.sizes.operator_rounds, clock=clock_for(device)
    )
    summary = Summary.of([seconds / copies for seconds in taken["operator"]])
    return {
        "operator": str(call),
        "calls": count,
        "seconds": summary.as_dict(),
        "floor_seconds": floor,
        "gap_seconds": (summary.median - floor) * count,
        "bytes": sum(operation.bytes for operation in operations),
        "flops": sum(operation.flops for operation in operations),
        "kernels": [operation.name for operation in operations],
        "chosen": sorted({key.operator for key in choices_of(call)}),
    }


def _totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "seconds": sum(row["seconds"]["median"] * row["calls"] for row in rows),
        "floor_seconds": sum(row["floor_seconds"] * row["calls"] for row in rows),
        "bytes": sum(row["bytes"] * row["calls"] for row in rows),
        "flops": sum(row["flops"] * row["calls"] for row in rows),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]["median"]
    return [
        row["operator"],
        str(row["calls"]),
        table.duration(seconds),
        table.duration(row["floor_seconds"]),
        f"{row['floor_seconds'] / seconds:.2f}",
        table.duration(max(row["gap_seconds"], 0.0)),
    ]


def worst(parts: dict[str, Any]) -> list[str]:
    """The tables' operators behind the largest gaps of a kernels stage, the largest first."""
    gaps: dict[str, float] = {}
    for row in parts.get("operators", []):
        for name in row["chosen"]:
            gaps[name] = gaps.get(name, 0.0) + row["gap_seconds"]
    return sorted(gaps, key=lambda name: -gaps[name])
