"""`fastres profile`: where the time of a step goes, operator by operator, beside its least.

The floor of an operator is the time that the machine needs to move its tensors once, or for its
products if that is longer. On a CPU times are those of the host, on a GPU those of the kernels.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..training.errors import TrainingError, UsageError
from . import traffic_model_machines as machines

_SMALL = 0.002  # an operator below this share of the step and of the floor is not shown by itself
_DTYPES = ("fp32", "bf16", "fp16")
# what runs operators that the profiler sees, by the word of the command line; the first is for
# training, the second for inference by default
_IMPLEMENTATIONS = {
    "fastres": "fastres",
    "fastres.optimize": "fastres.optimize",
    "eager-channels-last": "eager channels_last",
    "eager-nchw": "eager NCHW",
    "torchvision": "torchvision",
    "timm": "timm",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres profile`."""
    parser.add_argument("--model", default="resnet50", help="of fastres models (resnet50)")
    parser.add_argument("--batch", type=int, help="images a step (256 on a GPU, else 16)")
    parser.add_argument("--dtype", choices=_DTYPES, help="(bf16 on a GPU, else fp32)")
    parser.add_argument("--image-size", type=int, help="pixels (224, or 32 for a CIFAR network)")
    parser.add_argument("--inference", action="store_true", help="a forward pass in eval mode")
    parser.add_argument(
        "--implementation", choices=list(_IMPLEMENTATIONS),
        help="what to profile (fastres, or fastres.optimize with --inference)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (cuda where there is one)")
    parser.add_argument("--steps", type=int, default=3, help="profiled steps (3)")
    parser.add_argument("--threads", type=int, help="of a CPU (as PyTorch finds it)")
    floor = parser.add_argument_group("the machine of the floors (the one at hand, measured)")
    floor.add_argument("--machine", choices=machines.NAMES, help="a GPU's data sheet")
    floor.add_argument("--bandwidth", type=float, metavar="TB/s", help="with --matrix-rate")
    floor.add_argument("--matrix-rate", type=float, metavar="TFLOP/s", help="with --bandwidth")
    parser.add_argument(
        "--out", type=Path, default=Path("fastres-profile.json"),
        help="a results file, to whose profiles it is added (fastres-profile.json)",
    )  # fmt: skip
    parser.add_argument(
        "--trace", type=Path, help="the Chrome trace (beside --out, ending in .trace.json.gz)"
    )


def main(args: argparse.Namespace) -> int:
    """Profile a step, print its operators and write both files.

    Raises:
        UsageError: an option does not fit, or a file cannot be written.
        TrainingError: the step does not fit into memory.
    """
    # Kineto tells standard error when it starts, and that there is no GPU
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from . import profile, results

    try:
        # nobody waits for a profile that cannot be kept
        results.check(results.read(args.out), args.out, "profiles")
    except (OSError, ValueError) as error:
        raise UsageError(f"out: {error}") from None
    step, name = _step(args)
    machine = _machine(args, step.workload)
    trace = args.trace or args.out.with_name(
        f"{args.out.stem}-{_slug(f'{step.workload.name} {name}')}.trace.json.gz"
    )
    try:
        found = profile.profile(step, machine, steps=args.steps, trace=trace)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at batch {step.workload.batch}: {str(error).splitlines()[0]}; "
            "lower --batch or --image-size"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write trace to {trace}: {error.strerror or error}") from None
    _print(step, name, found)
    record = profile.record(
        step, found, model=args.model, image_size=step.workload.shapes[0][-1],
        implementation=name, trace=trace,
    )  # fmt: skip
    key = f"{step.workload.name}, {name}, {step.workload.device.type}"
    try:
        results.put(args.out, "profiles", {key: record})
    except OSError as error:
        raise UsageError(f"cannot write out to {args.out}: {error.strerror or error}") from None
    sys.stdout.write(f"\nwrote {args.out} and {trace} (chrome://tracing, ui.perfetto.dev)\n")
    return 0


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _step(args: argparse.Namespace) -> Any:
    """The step that is profiled, and the name of its implementation."""
    import torch

    from .. import models
    from . import cases, peers

    known = [*models.names(), *cases.SMALL]
    if args.model not in known:
        raise UsageError(f"model must be one of {', '.join(known)}, got {args.model!r}")
    for option, least in (("batch", 1), ("steps", 1), ("threads", 1), ("image_size", 8)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UsageError(f"device must be cpu, cuda or cuda:N, got {args.device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device must be cpu, cuda or cuda:N, got {args.device!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, and PyTorch finds no CUDA device")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    on_gpu = device.type == "cuda"
    dtype = args.dtype or ("bf16" if on_gpu else "fp32")
    batch = args.batch or (256 if on_gpu else 16)
    size = args.image_size or (32 if _is_cifar(args.model) else 224)
    if args.inference:
        workload = cases.inference(args.model, batch, size, dtype, device=device)
    else:
        workload = cases.network(args.model, batch, size, dtype, device=device, optimizer=True)
    word = args.implementation or ("fastres.optimize" if args.inference else "fastres")
    peer = peers.get(_IMPLEMENTATIONS[word])
    reason = peer.unavailable(workload)
    if reason is not None:
        raise UsageError(f"implementation {word} cannot run here: {reason}")
    try:
        return peer.make(workload), peer.name
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"out of memory: {str(error).splitlines()[0]}") from None


def _is_cifar(name: str) -> bool:
    import torch

    from .. import models

    with torch.device("meta"):
        return name in models.names() and isinstance(models.create(name), models.CifarResNet)


def _machine(args: argparse.Namespace, workload: Any) -> Any:
    import torch

    told = (args.bandwidth, args.matrix_rate)
    if told != (None, None):
        if args.machine is not None:
            raise UsageError("give one of machine, and bandwidth with matrix_rate")
        if None in told or min(told) <= 0:
            raise UsageError(f"bandwidth and matrix_rate must both be above 0, got {told}")
        return machines.given(*told)
    dtype = workload.autocast or torch.float32
    if args.machine is not None:
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return machines.known(args.machine, names[dtype])
    return machines.measured(workload.device, dtype)


_HEADER = ["calls", "time, ms", "share", "floor, ms", "gap, ms", "x floor", "MB", "GFLOP"]


def _print(step: Any, name: str, found: Any) -> None:
    from . import peers, profile
    from .table import print_table

    machine, whole = found.machine, found.step_seconds
    floor = sum(row.floor_seconds for row in found.operators)

    def cells(row: profile.Row) -> list[Any]:
        rate = f"{row.seconds / row.floor_seconds:.2f}" if row.floor_seconds > 1e-6 else ""
        return [
            row.operator, row.calls or "", _ms(row.seconds), f"{row.seconds / whole:.1%}",
            _ms(row.floor_seconds), _ms(row.gap), rate, f"{row.bytes / 1e6:.1f}",
            f"{row.flops / 1e9:.1f}",
        ]  # fmt: skip

    shown, rest = [], profile.Row("others")
    for row in found.operators:
        if row.seconds < _SMALL * whole and row.floor_seconds < _SMALL * floor:
            rest += row
        else:
            shown.append(row)
    total = sum(found.operators, profile.Row("together"))
    rows = [*shown, *([rest] if rest.calls else []), total]
    title = (
        f"{step.workload.name}: {name} on {step.workload.device}, {_ms(whole)} ms a step "
        f"({_ms(found.unprofiled_seconds)} ms without the profiler); floors of {machine.name} "
        f"({machine.bandwidth / 1e12:.3g} TB/s, {machine.matrix_rate / 1e12:.4g} TFLOP/s, "
        f"{machine.source})"
    )
    print_table(title, ["operator", *_HEADER], [cells(row) for row in rows])
    if len(found.parts) > 2:
        print_table(
            "\nby part of the network", ["part", *_HEADER], [cells(row) for row in found.parts]
        )
    if name == peers.FUSED and not found.fused:
        sys.stdout.write("\nno operator of fastres ran: fastres.explain says why\n")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
