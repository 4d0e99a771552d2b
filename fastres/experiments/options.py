"""The options of the experiments that train, and the plan they make."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from fastres.experiments.plan import (
    Network,
    Plan,
    depth_networks,
    read_plan,
    shortcut_networks,
)
from fastres.training.config import AMP_MODES, TrainConfig
from fastres.training.errors import UsageError

DATASETS = ("procedural", "cifar10")
TITLES = {
    "degradation": "Degradation: plain and residual networks of growing depth",
    "shortcuts": "Shortcuts A, B and C",
}
_DEPTHS = {"degradation": (20, 32, 44, 56), "shortcuts": (20, 56)}
_QUICK_DEPTHS = {"degradation": (20, 56), "shortcuts": (20,)}
_ALL_DEPTHS = (20, 32, 44, 56, 110)
_SEEDS = (0, 1, 2)
_SAVE_EVERY = 100  # iterations that a killed run repeats at most

# with batches of 64 a ResNet-56 learned nothing from these images in 120 iterations at 0.05, and
# much at 0.02; all networks start at a tenth of the rate, as the paper's depth 110 does
_FULL: dict[str, Any] = {"lr": 0.04, "warmup_iterations": 400}
_QUICK: dict[str, Any] = {
    "num_images": 2_560,
    "iterations": 440,
    "batch_size": 64,
    "lr": 0.02,
    "warmup_iterations": 20,
}
_DEFAULTS: dict[tuple[str, bool], dict[str, Any]] = {
    ("procedural", False): _FULL,
    ("procedural", True): _QUICK,
    ("cifar10", False): {},  # TrainConfig's, the paper's
}


def add_arguments(parser: argparse.ArgumentParser, experiment: str) -> None:
    """The options of one experiment."""
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--data", choices=DATASETS, default="procedural", help="(%(default)s)")
    add("--data-dir", help="folder with CIFAR-10's files")
    add("--out", type=Path, help=f"folder (out/{experiment}, with --quick out/{experiment}-quick)")
    add(
        "--quick",
        action="store_true",
        help="a reduced form for two CPU cores; other options still override it",
    )
    add("--depths", type=_integers, metavar="N,N,...", help="out of 20, 32, 44, 56 and 110")
    add("--seeds", type=_integers, metavar="N,N,...", help="(0,1,2)")
    add("--iterations", type=int)
    add("--batch-size", type=int)
    add("--lr", type=float)
    add("--num-images", type=int, help="procedural: training images; a fifth as many are tested")
    add("--data-seed", type=int, help="procedural: the seed that the images are drawn from (0)")
    add("--amp", choices=AMP_MODES)
    add("--fused", action=flag, default=True, help="fused operators or plain PyTorch")
    add("--cuda-graph", action=flag, help="capture the steps on a GPU (the default there)")
    add("--deterministic", action=flag, help="only deterministic algorithms, on a GPU as well")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--workers", type=int, help="processes that load images, for each run")
    add("--jobs", type=int, help="runs at a time (on a CPU one for each core, on a GPU two)")
    add("--threads", type=int, help="CPU threads of each run (the cores divided by the jobs)")
    add(
        "--response-images",
        type=int,
        default=500,
        help="test images for the layers' responses; 0 leaves them out (%(default)s)",
    )


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 20,56, got {text!r}") from None


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that the options describe; fills in args.jobs.

    Raises UsageError naming the option, what was expected and what came.
    """
    from fastres.training.distributed import choose_device

    experiment = args.kind
    if args.quick and args.data != "procedural":
        raise UsageError(f"quick is for data 'procedural' only, data is {args.data!r}")
    if args.data == "cifar10" and args.data_dir is None:
        raise UsageError("data 'cifar10' needs data_dir, the folder of its files")
    if args.response_images < 0:
        raise UsageError(f"response_images must be 0 or more, got {args.response_images}")
    out = args.out or Path(f"out/{experiment}{'-quick' if args.quick else ''}")
    depths = _depths(args, experiment)
    seeds = _distinct("seeds", args.seeds or _SEEDS)
    device = choose_device(args.device, 0)
    on_gpu = device.type == "cuda"
    recipe = _recipe(args, on_gpu)
    networks = _networks(experiment, depths)
    args.jobs, threads = _share_cores(args, out, on_gpu, len(networks) * len(seeds))
    return Plan(
        experiment=experiment,
        title=TITLES[experiment],
        networks=networks,
        seeds=seeds,
        data=args.data,
        recipe={**recipe, "device": str(device)},
        threads=threads,
        out=out,
        free={
            "data_dir": args.data_dir,
            "workers": args.workers,
            "save_every": _SAVE_EVERY,
            "log_every": 10,
        },
    )


def _networks(experiment: str, depths: tuple[int, ...]) -> tuple[Network, ...]:
    return depth_networks(depths) if experiment == "degradation" else shortcut_networks(depths)


def _depths(args: argparse.Namespace, experiment: str) -> tuple[int, ...]:
    defaults = _QUICK_DEPTHS if args.quick else _DEPTHS
    depths = tuple(sorted(_distinct("depths", args.depths or defaults[experiment])))
    for depth in depths:
        if depth not in _ALL_DEPTHS:
            raise UsageError(
                f"depths must be out of {', '.join(map(str, _ALL_DEPTHS))}, got {depth}"
            )
    return depths


def _distinct(name: str, values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise UsageError(f"{name} must differ, got {','.join(map(str, values))}")
    return values


def _recipe(args: argparse.Namespace, on_gpu: bool) -> dict[str, Any]:
    """Options of every run; the dataset's defaults where neither the user nor --quick says."""
    names = ("iterations", "batch_size", "lr", "num_images", "data_seed", "amp", "deterministic")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    chosen = {**_DEFAULTS[args.data, args.quick], **given}
    if args.data == "cifar10":
        # the schedule comes from a 45k/5k split, the reported runs train on all images (4.2)
        chosen["validation"] = 0
    config = TrainConfig.build(args.data, **chosen)
    iterations = config.iterations
    if args.data == "procedural":
        chosen["warmup_iterations"] = min(chosen["warmup_iterations"], iterations // 10)
    # where the rate falls for CIFAR-10; later in the short form, whose plain networks start slowly
    parts = ((3, 4), (9, 10)) if args.quick else ((1, 2), (3, 4))
    steps = sorted({iterations * part // whole for part, whole in parts} - {0})
    decided = {
        **chosen,
        "iterations": iterations,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "milestones": tuple(steps),
        "fused": args.fused,
        "cuda_graph": on_gpu if args.cuda_graph is None else args.cuda_graph,
    }
    if args.data == "procedural":
        decided |= {"num_images": config.num_images, "data_seed": config.data_seed}
    return decided


def _share_cores(args: argparse.Namespace, out: Path, on_gpu: bool, runs: int) -> tuple[int, int]:
    """Runs at a time, and threads of each: sums depend on them, so a folder keeps its number."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for name in ("jobs", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    jobs = args.jobs or min(2 if on_gpu else cores, runs)
    before = read_plan(out) or {}
    return jobs, args.threads or before.get("threads") or max(1, cores // jobs)
