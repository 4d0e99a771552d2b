"""`fastres tune`: measures the kernels' configs on this GPU and writes the user's tuned table."""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastres.training.errors import TrainingError, UsageError

if TYPE_CHECKING:
    import torch

    from fastres.bench.operator_calls import Call
    from fastres.tuning.progress import Lines
    from fastres.tuning.search import Outcome, Search
    from fastres.tuning.tasks import Task

DTYPES = ("bf16", "fp16", "fp32")
# what a dry run without a GPU is for
_FAMILY = "sm_90"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres tune`."""
    add = parser.add_argument
    add("--model", nargs="+", default=["resnet50"], help="networks whose steps count (resnet50)")
    add("--batch", type=int, default=256, help="images of a step on one GPU (%(default)s)")
    add("--image-size", type=int, help="224 for ImageNet's networks, 32 for CIFAR's")
    add("--dtype", nargs="+", choices=DTYPES, default=["bf16"], help="of the activations (bf16)")
    add(
        "--inference",
        action="store_true",
        help="the forward pass of `fastres.optimize` counts, not a training step",
    )
    add(
        "--operators",
        nargs="+",
        metavar="NAME",
        help="only these, in this order; --dry-run names them",
    )
    add("--out", type=Path, metavar="FILE", help="table to write, instead of the user's own")
    add("--seconds", type=float, help="stop after so long; what matters most comes first")
    add("--rounds", type=int, default=9, help="samples of each candidate (%(default)s)")
    add("--candidates", type=int, default=48, help="tried for each choice at most (%(default)s)")
    add(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile (%(default)s)"
    )
    add("--device", default="cuda", help="cuda or cuda:N")
    add("--dry-run", action="store_true", help="only list what would be measured, on any machine")


def main(args: argparse.Namespace) -> int:
    """Tunes and returns 0; 1 if nothing could be measured. Raises TrainingError."""
    _check(args)
    if importlib.util.find_spec("triton") is None:
        raise UsageError("tune needs Triton, which is not installed")
    import torch

    from fastres.kernels import tables, tuned

    if args.dry_run:
        there = torch.cuda.is_available()
        gpu, family = tuned.chip(torch.device(args.device)) if there else (None, _FAMILY)
    else:
        device = _gpu(args.device)
        gpu, family = tuned.chip(device)
        path = args.out or tables.user_path(gpu)
        # a folder that FASTRES_CONFIGS names must be there before anything is read
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        calls: Counter[Call] = Counter()
        for model in args.model:
            for dtype in args.dtype:
                calls += _record(model, args, dtype)
        tasks = _tasks(calls, args.operators, gpu, family)
        if args.dry_run:
            what = "inference" if args.inference else "a training step"
            return _list(tasks, f"{what} on {gpu or f'any GPU of family {family}'}")
        return _tune(tasks, args, device, path)
    except tables.TableError as error:
        raise UsageError(str(error)) from None


def _check(args: argparse.Namespace) -> None:
    for name, least in (
        ("batch", 1),
        ("image_size", 1),
        ("rounds", 1),
        ("candidates", 2),
        ("jobs", 1),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")
    if args.seconds is not None and not args.seconds > 0:
        raise UsageError(f"seconds must be above 0, got {args.seconds}")


def _gpu(name: str) -> torch.device:
    """The device to measure on. Raises UsageError with what is missing."""
    import torch

    from fastres.backends import triton as backend

    needs = "tune measures on an NVIDIA GPU of compute capability 8.0 or higher, with Triton"
    hint = "--dry-run lists what would be measured, on any machine"
    if not torch.cuda.is_available():
        raise UsageError(f"{needs}; torch finds no usable CUDA device ({hint})")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device must be cuda or cuda:N, got {name!r}") from None
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device must be cuda or cuda:N with N below "
                         f"{torch.cuda.device_count()}, got {name!r}")  # fmt: skip
    device = torch.device("cuda", device.index or 0)
    reason = backend.usable(device, torch.float32)
    if reason is not None:
        raise UsageError(f"{needs}; {reason} ({hint})")
    torch.cuda.set_device(device)
    return device


def _record(model: str, args: argparse.Namespace, dtype: str) -> Counter[Call]:
    from fastres.bench.operator_calls import record_inference, record_step

    record = record_inference if args.inference else record_step
    try:
        return record(model, args.batch, dtype, args.image_size)
    except ValueError as error:
        raise UsageError(f"model {model!r}, batch {args.batch}: {error}") from None


def _tasks(
    calls: Counter[Call], operators: Sequence[str] | None, gpu: str | None, family: str
) -> list[Task]:
    from fastres.tuning.tasks import find_tasks

    tasks = find_tasks(calls, gpu, family)
    if operators is None:
        return tasks
    known = sorted({task.key.operator for task in tasks})
    for name in operators:
        if name not in known:
            raise UsageError(f"operators must be among {', '.join(known)}, got {name!r}")
    wanted = {name: place for place, name in enumerate(operators)}
    chosen = [task for task in tasks if task.key.operator in wanted]
    return sorted(chosen, key=lambda task: wanted[task.key.operator])


def _list(tasks: list[Task], where: str) -> int:
    """Print what would be measured."""
    from fastres.bench.table import print_table
    from fastres.tuning.candidates import describe, neighbours

    rows = [
        [
            str(task),
            str(task.calls.total()),
            f"{task.nbytes / 1e9:.2f}",
            describe(task.choice),
            str(len(neighbours(task.key.operator, task.choice))),
        ]
        for task in tasks
    ]
    header = ["operator and shape class", "calls", "GB in", "chosen now", "candidates"]
    print_table(f"{len(tasks)} choices of {where}", header, rows)
    print("candidates are those of the first wave; the next ones lie around the best of it")
    for task in tasks:
        for candidate in neighbours(task.key.operator, task.choice):
            print(f"{task}: {describe(candidate)}")
    return 0


def _tune(tasks: list[Task], args: argparse.Namespace, device: torch.device, path: Path) -> int:
    """Measure every task and write the table after each; 1 if nothing was measured."""
    from fastres.bench.compile_ahead import Compiler, Target
    from fastres.kernels import tuned
    from fastres.tuning import user_table
    from fastres.tuning.progress import progress
    from fastres.tuning.search import LostDevice, Search

    gpu, family = tuned.chip(device)
    versions = _versions()
    deadline = None if args.seconds is None else time.monotonic() + args.seconds

    def save(outcome: Outcome) -> None:
        user_table.merge(path, gpu, versions, [user_table.row(outcome, family, versions)])

    try:
        with progress(len(tasks)) as shown, Compiler(Target.of(device), args.jobs) as compiler:
            search = Search(
                device, rounds=args.rounds, limit=args.candidates, deadline=deadline,
                compiler=compiler,
            )  # fmt: skip
            outcomes = measure(search, tasks, save, shown)
    except LostDevice as error:
        raise TrainingError(f"{error}; what was measured before is in {path}") from None
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}") from None
    return _report(outcomes, len(tasks), path)


def measure(search: Search, tasks: Sequence[Task], save, shown: Lines) -> list[Outcome]:
    """Run the tasks until the search's time is up, saving each outcome that has a time."""
    from fastres.tuning.candidates import describe

    outcomes = []
    for number, task in enumerate(tasks):
        if search.late():
            shown.note(f"the time is up: {len(tasks) - len(outcomes)} choices are not measured")
            break
        search.ahead(tasks[number : number + 2])
        outcome = search.run(task, shown.doing)
        outcomes.append(outcome)
        for choice, reason in outcome.rejected:
            shown.note(f"  rejected {task}: {describe(choice)}: {reason}")
        if outcome.seconds is None:
            shown.finished(f"{task}: not measured: {outcome.problem}")
            continue
        save(outcome)
        before = "rejected" if outcome.before is None else f"{outcome.before * 1e6:.1f} us"
        shown.finished(
            f"{task}: {describe(outcome.choice)}, {outcome.seconds * 1e6:.1f} us a call "
            f"(before: {before})"
        )
    return outcomes


def _report(outcomes: list[Outcome], total: int, path: Path) -> int:
    from fastres.tuning.candidates import same

    measured = [outcome for outcome in outcomes if outcome.seconds is not None]
    if not measured:
        raise TrainingError(f"none of {total} choices could be measured; no table was written")
    changed = [o for o in measured if not same(o.choice, o.task.choice)]
    print(f"{len(measured)} of {total} choices measured, {len(changed)} changed; table: {path}")
    return 0


def _versions() -> dict[str, Any]:
    """What the times depend on, beside the GPU."""
    import torch
    import triton

    from fastres.version import __version__

    return {
        "fastres": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "date": time.strftime("%Y-%m-%d"),
    }
