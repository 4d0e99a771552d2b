"""`fastres traffic`: bytes, flops and the time floor of a training step, plan by plan."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import models
from ..training.errors import UsageError
from . import cases, traffic_model_machines
from .table import print_table
from .traffic_model import PHASES, Machine, Operation, Plan, Sum
from .traffic_model_plans import NAMES, VARIANTS, Recorded, Unit, record, unit
from .workload import Workload

# an operator below this share of the bytes, flops and time of its plan is not shown by itself
_SMALL = 0.002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres traffic`."""
    parser.add_argument(
        "--model", default="resnet50", help="a network of fastres.models (resnet50)"
    )
    parser.add_argument("--batch", type=int, default=256, help="images a step (256)")
    parser.add_argument("--dtype", choices=list(cases.DTYPES), default="bf16", help="(bf16)")
    parser.add_argument("--image-size", type=int, help="pixels (224, or 32 for a CIFAR network)")
    parser.add_argument(
        "--plan", nargs="+", choices=NAMES, metavar="PLAN",
        help=f"which plans: {', '.join(NAMES)} (all)",
    )  # fmt: skip
    parser.add_argument("--blocks", action="store_true", help="add the bytes of every block")
    floor = parser.add_argument_group("the device of the time floor (an H200)")
    floor.add_argument("--gpu", choices=traffic_model_machines.NAMES, help="a GPU's data sheet")
    floor.add_argument("--bandwidth", type=float, metavar="TB/s", help="with --matrix-rate")
    floor.add_argument("--matrix-rate", type=float, metavar="TFLOP/s", help="with --bandwidth")
    floor.add_argument("--measure", action="store_true", help="measure the device at hand")
    parser.add_argument("--json", type=Path, help="write every operator of every plan to this file")


def main(args: argparse.Namespace) -> int:
    """Record the plans and print them.

    Raises:
        UsageError: an option does not fit, or Triton is not installed.
    """
    workload = _workload(args)
    machine = _machine(args)
    chosen = [variant for variant in VARIANTS if args.plan is None or variant.name in args.plan]
    try:
        recorded = [record(workload, one, machine.gpu, machine.family) for one in chosen]
    except ImportError as error:
        raise UsageError(f"the plans are recorded from Triton's launches: {error}") from None
    measure = unit(workload)
    scale = Scale.of(recorded[0].plan.total(machine).bytes)
    _print_totals(workload, machine, recorded, scale)
    if measure is not None:
        _print_units(measure, recorded)
    for plan in recorded:
        _print_operators(plan.plan, machine, scale)
    if args.blocks:
        _print_blocks(recorded, scale)
    if args.json is not None:
        _write(args.json, workload, machine, measure, recorded)
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    if args.model not in [*models.names(), *cases.SMALL]:
        raise UsageError(f"model must be one of {', '.join(models.names())}, got {args.model!r}")
    if args.batch < 1:
        raise UsageError(f"batch must be at least 1, got {args.batch}")
    size = args.image_size
    if size is None:
        size = 32 if _is_cifar(args.model) else 224
    if size < 32:
        raise UsageError(f"image_size must be at least 32, got {size}")
    return cases.network(args.model, args.batch, size, args.dtype)


def _is_cifar(name: str) -> bool:
    with torch.device("meta"):
        return name in models.names() and isinstance(models.create(name), models.CifarResNet)


def _machine(args: argparse.Namespace) -> Machine:
    told = (args.bandwidth, args.matrix_rate)
    ways = (args.gpu is not None, told != (None, None), args.measure)
    if sum(ways) > 1:
        raise UsageError("give one of gpu, bandwidth with matrix_rate, and measure")
    if ways[1]:
        if None in told or min(told) <= 0:
            raise UsageError(f"bandwidth and matrix_rate must both be above 0, got {told}")
        return traffic_model_machines.given(*told)
    if ways[2]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = cases.DTYPES[args.dtype] or torch.float32
        return traffic_model_machines.measured(device, dtype)
    return traffic_model_machines.known(args.gpu or "H200", args.dtype)


class Scale(NamedTuple):
    """The unit in which bytes are shown."""

    name: str
    bytes: float

    @staticmethod
    def of(count: int) -> Scale:
        return Scale("GB", 1e9) if count >= 1e10 else Scale("MB", 1e6)

    def show(self, count: float) -> str:
        return f"{count / self.bytes:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _print_totals(
    workload: Workload, machine: Machine, recorded: Sequence[Recorded], scale: Scale
) -> None:
    first = recorded[0].plan
    rows = []
    for found in recorded:
        total = found.plan.total(machine)
        rows.append(
            [
                found.plan.name,
                total.calls,
                total.small,
                scale.show(total.read),
                scale.show(total.written),
                scale.show(total.bytes),
                f"{total.bytes / first.total(machine).bytes:.2f}",
                f"{total.flops / 1e12:.2f}",
                _milliseconds(total.seconds),
                f"{workload.batch / total.seconds:,.0f}",
                scale.show(sum(found.saved.values())),
            ]
        )
    title = (
        f"{workload.name}: a training step on {machine.name} "
        f"({machine.bandwidth / 1e12:.3g} TB/s, {machine.matrix_rate / 1e12:.4g} TFLOP/s, "
        f"{machine.source}); computed, not measured"
    )
    header = [
        "plan", "operators", "under 1 MB", f"read, {scale.name}", "written", "together",
        f"x {first.name}", "TFLOP", "floor, ms", "images/s at most", "kept for backward",
    ]  # fmt: skip
    print_table(title, header, rows)
    for found in recorded:
        sys.stdout.write(f"  {found.plan.name}: {found.plan.explanation}\n")


def _print_units(measure: Unit, recorded: Sequence[Recorded]) -> None:
    rows = []
    for found in recorded:
        moved = found.plan.block_bytes(measure.block)
        forward, backward = (moved[phase] / measure.nbytes for phase in PHASES[:2])
        kept = found.saved.get(measure.block, 0) / measure.nbytes
        rows.append(
            [found.plan.name, *(f"{n:.1f}" for n in (forward, backward, forward + backward, kept))]
        )
    title = (
        f"\n{measure.block}, in units of one narrow activation of it "
        f"({measure.nbytes / 1e6:.1f} MB)"
    )
    print_table(title, ["plan", "forward", "backward", "together", "kept for backward"], rows)


def _print_operators(plan: Plan, machine: Machine, scale: Scale) -> None:
    def key(operation: Operation) -> tuple[str, str, str]:
        return operation.phase, operation.name, operation.provider

    total = plan.total(machine)
    rows, rest = [], Sum(0, 0, 0, 0, 0, 0.0)
    for (phase, name, provider), found in plan.grouped(machine, key).items():
        if found.bytes < _SMALL * total.bytes and found.seconds < _SMALL * total.seconds:
            rest = _add(rest, found)
        else:
            rows.append([f"{phase}: {name}", provider, *_cells(found, scale)])
    if rest.calls:
        rows.append(["others", "", *_cells(rest, scale)])
    rows.append(["total", "", *_cells(total, scale)])
    header = ["operator", "by", "calls", f"read, {scale.name}", "written", "TFLOP", "floor, ms"]
    print_table(f"\n{plan.name}: {plan.explanation}", header, rows)


def _add(a: Sum, b: Sum) -> Sum:
    return Sum(
        a.calls + b.calls, a.small + b.small, a.read + b.read, a.written + b.written,
        a.flops + b.flops, a.seconds + b.seconds,
    )  # fmt: skip


def _cells(found: Sum, scale: Scale) -> list[Any]:
    return [
        found.calls,
        scale.show(found.read),
        scale.show(found.written),
        f"{found.flops / 1e12:.2f}",
        _milliseconds(found.seconds),
    ]


def _print_blocks(recorded: Sequence[Recorded], scale: Scale) -> None:
    rows = []
    for block in recorded[0].blocks:
        moved = [found.plan.block_bytes(block) for found in recorded]
        rows.append(
            [block, *(" + ".join(scale.show(here[p]) for p in PHASES[:2]) for here in moved)]
        )
    header = ["block", *(found.plan.name for found in recorded)]
    print_table(f"\n{scale.name} of every block, forward + backward", header, rows)


def _write(
    path: Path,
    workload: Workload,
    machine: Machine,
    measure: Unit | None,
    recorded: Sequence[Recorded],
) -> None:
    plans = []
    for found in recorded:
        entry = {**found.plan.as_dict(machine), "saved": found.saved}
        if measure is not None:
            moved = found.plan.block_bytes(measure.block)
            entry["units"] = {phase: moved[phase] / measure.nbytes for phase in PHASES[:2]}
        plans.append(entry)
    record = {
        "workload": workload.name,
        "machine": vars(machine),
        "unit": None if measure is None else vars(measure),
        "plans": plans,
    }
    try:
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write json to {path}: {error.strerror}") from None
