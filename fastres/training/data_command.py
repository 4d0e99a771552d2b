"""`fastres data mean` and `fastres data speed`: the images in numbers, and how fast they come."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fastres.training import train
from fastres.training.config import CROPS, TrainConfig
from fastres.training.errors import UsageError

if TYPE_CHECKING:
    from fastres.training.data.source import Raw
    from fastres.training.data.statistics import Statistics

_BATCH = 64
_NAMED = 20  # broken images that are named one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two subcommands' options."""
    actions = parser.add_subparsers(dest="action", metavar="mean|speed", required=True)
    summary = "per-pixel mean and colour components of the training crops, into a file"
    mean = actions.add_parser("mean", help=summary, description=summary)
    add = mean.add_argument
    add("--data", choices=("imagefolder", "webdataset"), default="imagefolder")
    add("--data-dir", required=True)
    add("--image-size", type=int, default=224, help="(%(default)s)")
    add("--crop", choices=CROPS, default="side", help="as in training (%(default)s)")
    add("--shorter-side", type=train.integers, metavar="LOW,HIGH", help="as in training")
    add("--seed", type=int, default=0, help="of the crops (%(default)s)")
    add("--workers", type=int, default=0, help="processes that load images (%(default)s)")
    add("--skip-broken", action="store_true", help="go on without images that cannot be read")
    add("--out", help="DATA_DIR/statistics.pt unless given")
    summary = "whether the input pipeline keeps up with a training step; options of fastres train"
    speed = actions.add_parser("speed", help=summary, description=summary)
    train.add_arguments(speed)
    speed.add_argument("--steps", type=int, default=20, help="measured (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Prints what was found and returns 0."""
    return _mean(args) if args.action == "mean" else _speed(args)


def _mean(args: argparse.Namespace) -> int:
    config = TrainConfig.build(
        args.data, data_dir=args.data_dir, image_size=args.image_size, crop=args.crop,
        shorter_side=args.shorter_side, seed=args.seed, workers=args.workers,
        skip_broken=args.skip_broken, statistics=args.out,
    )  # fmt: skip

    from fastres.training.data.files import statistics_path

    path = statistics_path(config)
    statistics, skipped = compute(config)
    statistics.save(path)
    for name in skipped[:_NAMED]:
        print(f"skipped: {name}")
    if len(skipped) > _NAMED:
        print(f"skipped: {len(skipped) - _NAMED} more")
    for line in describe(statistics):
        print(line)
    print(f"in {path}: train with --mean pixel, or --color data, or --recipe imagenet")
    return 0


def compute(config: TrainConfig) -> tuple[Statistics, list[str]]:
    """The statistics of a run's training crops, each image cut once, and what was skipped.

    Raises DataError for an image that cannot be read, unless the config skips them.
    """
    import torch

    from fastres.training.data.decoded import DecodedSplit
    from fastres.training.data.files import geometry_of, open_stores
    from fastres.training.data.loader import Loader
    from fastres.training.data.normalize import Normalize
    from fastres.training.data.sampler import EvaluationSampler
    from fastres.training.data.statistics import accumulate

    store, _ = open_stores(config)
    view = geometry_of(config).training()
    nothing = Normalize(torch.zeros(3, 1, 1))
    split = DecodedSplit(store, view, config.seed, nothing, skip_broken=config.skip_broken)
    sampler = EvaluationSampler(len(split), _BATCH)
    loader = Loader(split, sampler, config.workers, pin_memory=False)
    skipped: list[str] = []

    def batches() -> Iterator[Raw]:
        for batch in _shown(loader, len(loader)):
            skipped.extend(batch.skipped)
            yield batch

    try:
        return accumulate(batches()), skipped
    finally:
        loader.close()


def describe(statistics: Statistics) -> list[str]:
    """What was found, in lines."""
    mean = statistics.mean.double().mean((1, 2))
    low, high = statistics.mean.amin((1, 2)), statistics.mean.amax((1, 2))
    size = statistics.image_size
    lines = [f"{statistics.images} crops of {size}x{size}, values from 0 to 1"]
    for place, name in enumerate(("red", "green", "blue")):
        lines.append(
            f"{name:6s} mean {mean[place]:.4f} (pixels {low[place]:.4f} to {high[place]:.4f})  "
            f"deviation {statistics.std[place]:.4f}"
        )
    for place in range(3):
        axis = ", ".join(f"{part:.4f}" for part in statistics.vectors[:, place])
        lines.append(f"component {place + 1}: eigenvalue {statistics.values[place]:.4f} of {axis}")
    return lines


def _shown(batches: Iterable[Raw], total: int) -> Iterable[Raw]:
    """The same, with a bar on a terminal where rich is installed."""
    if not sys.stdout.isatty():
        return batches
    try:
        from rich.progress import track
    except ImportError:
        return batches
    return track(batches, description="reading", total=total, transient=True)


def _speed(args: argparse.Namespace) -> int:
    if args.steps < 1:
        raise UsageError(f"steps must be at least 1, got {args.steps}")
    config = train.build_config(args)

    from fastres.training.distributed import World, choose_device
    from fastres.training.input_speed import measure_input
    from fastres.training.reporter import make_reporter

    device = choose_device(config.device, 0)
    with tempfile.TemporaryDirectory() as folder:  # a trainer makes its folder; nothing goes in
        trainer = train.build_trainer(
            replace(config, out=folder), World(), device, make_reporter(True)
        )
        for line in measure_input(trainer, args.steps).lines():
            print(line)
    return 0
