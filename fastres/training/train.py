"""`fastres train`: its options, and the run they describe."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastres.training import recipes
from fastres.training.config import (
    AMP_MODES,
    COLORS,
    CROPS,
    DATASETS,
    MEANS,
    SCHEDULES,
    WARMUPS,
    TrainConfig,
)  # fmt: skip
from fastres.training.errors import UsageError

if TYPE_CHECKING:
    import torch

    from fastres.training.distributed import World
    from fastres.training.engine import Trainer
    from fastres.training.reporter import Silent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of TrainConfig; what is not given is the recipe's or the dataset's default."""
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--recipe", choices=recipes.NAMES, help="`fastres recipes NAME` prints one")
    add("--data", choices=DATASETS, help="needed without --recipe")
    add("--data-dir", help="folder of cifar10's, imagefolder's or webdataset's files")
    add("--model", help="a network's name, such as resnet20 or resnet50")
    add("--shortcut", help="A, B or C (paper, section 3.3)")
    add("--variant", help="v1 or v1.5 for bottleneck networks")
    add("--fused", action=flag, help="fused operators (default) or plain PyTorch")
    add("--out", default="out/train", help="folder of checkpoints and logs (%(default)s)")
    add("--resume", metavar="auto|PATH", help="go on from OUT/last.pt if it is there, or from PATH")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int)
    length.add_argument("--iterations", type=int)
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument(
        "--batch-size", type=int, help="images of a step, over all processes together"
    )
    batch.add_argument("--batch-per-process", type=int, help="the same, of one process")
    add("--lr", type=float)
    add("--lr-batch", type=int, help="--lr is for a batch of this size and grows with the batch")
    add("--momentum", type=float)
    add("--weight-decay", type=float)
    add("--norm-decay", action=flag, help="decay biases and batch norm's parameters as well")
    add("--label-smoothing", type=float)
    add("--ema-decay", type=float, help="evaluate a running average of the network as well")
    add("--ema-every", type=int, help="iterations between its updates")
    add("--schedule", choices=SCHEDULES)
    add(
        "--milestones",
        type=integers,
        metavar="N,N,...",
        help="where the step schedule multiplies lr by gamma, in the unit of the run's length",
    )
    add("--gamma", type=float)
    add("--patience", type=int, help="epochs the plateau schedule waits")
    add("--warmup", choices=WARMUPS, help="at --warmup-lr, or from it in a line to the full rate")
    add("--warmup-iterations", type=int, help="how long; 0 for no warm-up")
    add("--warmup-epochs", type=int, help="how long, in epochs")
    add("--warmup-error", type=float, help="until the training error is below this percentage")
    add("--warmup-lr", type=float, help="a tenth of the full rate unless given")
    add("--amp", choices=AMP_MODES)
    add("--channels-last", action=flag)
    add("--cuda-graph", action=flag, help="capture the whole step in a CUDA graph (one GPU)")
    add("--device", help="auto, cpu, cuda or cuda:N")
    add("--sync-bn", action=flag, help="batch statistics over all processes")
    add("--deterministic", action=flag, help="only deterministic algorithms, on a GPU as well")
    add("--seed", type=int)
    add("--workers", type=int, help="processes that load images")
    add("--validation", type=int, help="cifar10: training images held out; 0 trains on all")
    add("--padding", type=int, help="cifar10: pixels around an image that is then cropped")
    add("--flip", action=flag, help="mirror half of the training images")
    add("--mean", choices=MEANS, help="what is subtracted; see `fastres data mean`")
    add("--statistics", help="file of `fastres data mean` (DATA_DIR/statistics.pt)")
    add("--color", choices=COLORS, help="PCA colour augmentation: AlexNet's values or the data's")
    add("--color-std", type=float)
    add("--crop", choices=CROPS, help="scale by the shorter side, or crop 8%% to 100%% of the area")
    add("--shorter-side", type=integers, metavar="LOW,HIGH", help="drawn from this range")
    add("--skip-broken", action=flag, help="go on without images that cannot be read; counted")
    add("--image-size", type=int, help="imagefolder, webdataset and synthetic")
    add("--num-images", type=int, help="synthetic and procedural")
    add("--data-seed", type=int, help="procedural: the seed that the images are drawn from")
    add("--save-every", type=int, help="iterations between checkpoints inside an epoch")
    add("--log-every", type=int, help="iterations between rows of steps.csv")
    add("--tensorboard", action=flag)
    add("--timeout", type=float, help="seconds after which a silent process counts as dead")


def integers(text: str) -> tuple[int, ...]:
    """Numbers between commas, for an option."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 80,120, got {text!r}") from None


def main(args: argparse.Namespace) -> int:
    """Trains and returns 0; raises TrainingError with the exit code of anything else."""
    config = build_config(args)

    from fastres.training.distributed import join_world
    from fastres.training.reporter import make_reporter

    world, device = join_world(config.device, config.timeout)
    if args.batch_per_process is not None:
        config = replace(config, batch_size=args.batch_per_process * world.size)
        config.check()
    try:
        with world.naming_lost_peers():
            _train(config, args.resume, world, device, make_reporter(world.is_main))
    finally:
        world.close()
    return 0


def build_config(args: argparse.Namespace) -> TrainConfig:
    """The run that the options of `add_arguments` describe. Raises UsageError."""
    known = TrainConfig.__dataclass_fields__
    return TrainConfig.build(**{name: value for name, value in vars(args).items() if name in known})


def _train(
    config: TrainConfig, resume: str | None, world: World, device: torch.device, reporter: Silent
) -> None:
    from fastres.training.folder import hold_folder

    trainer = build_trainer(config, world, device, reporter)
    last = Path(config.out) / "last.pt"
    with hold_folder(Path(config.out), world):
        if resume == "auto":
            _check_not_elsewhere(last, world)
        # rank 0 alone reads: the folder may be on its machine only
        path = world.from_main(lambda: _find_checkpoint(resume, last))
        if path is not None:
            trainer.resume(path)
        done = trainer.progress.iteration
        if done >= trainer.total:
            reporter.note(f"nothing left to train: iteration {done} of {trainer.total} is reached")
        result = trainer.run()
    for name, test in (("test", result.test), ("averaged network", result.averaged_test)):
        if test is not None:
            reporter.note(
                f"{name}: loss {test.loss:.4f}  top-1 {test.top1:.2f}%  top-5 {test.top5:.2f}%  "
                f"({test.images} images)"
            )
    reporter.note(f"state in {last}, logs in {config.out}")


def _find_checkpoint(resume: str | None, last: Path) -> Path | None:
    """The file to go on from, if any. Raises UsageError if a fresh run would write over another."""
    if resume is None:
        if os.path.exists(last):
            raise UsageError(
                f"{last.parent} holds a run already: give --resume auto or another out"
            )
        return None
    if resume == "auto":
        return last if os.path.exists(last) else None
    return Path(resume)


def _check_not_elsewhere(last: Path, world: World) -> None:
    """Raises UsageError where a run would start anew because its folder is on another machine."""
    holders = [rank for rank, found in enumerate(world.gather(os.path.exists(last))) if found]
    if holders and holders[0] != 0:
        raise UsageError(
            f"rank {holders[0]} has {last}, but rank 0, which is to go on from it, has not: keep "
            "the order of the machines (torchrun --node-rank) or share the folder among them"
        )


def build_trainer(
    config: TrainConfig, world: World, device: torch.device, reporter: Silent
) -> Trainer:
    """Opens the data, makes the network and the folder, and puts the run together.

    Raises UsageError for what the options ask and the data or the network cannot give.
    """
    from fastres import models
    from fastres.training import rng
    from fastres.training.data import open_source
    from fastres.training.engine import Trainer
    from fastres.training.folder import make_folder
    from fastres.training.tables import check_same_tables

    if config.sync_bn and device.type == "cpu" and not config.fused:
        raise UsageError("sync_bn on a CPU needs fused: torch's own works on GPUs only")
    _choose_algorithms(config.deterministic, device)
    if config.fused and _backend(config, device) == "triton":
        check_same_tables(world, device)
    source = open_source(config)
    reporter.note(source.description)
    options = {"shortcut": config.shortcut, "variant": config.variant}
    given = {name: value for name, value in options.items() if value is not None}
    rng.seed_all(config.seed)
    try:
        model = models.create(
            config.model, num_classes=source.num_classes, fused=config.fused, **given
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"model {config.model!r}: {error}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    kind = f"fused ({_backend(config, device)})" if config.fused else "plain PyTorch"
    where = str(device) if world.size == 1 else f"{world.size} processes on {device.type}"
    reporter.note(f"{config.model}: {count:,} parameters, {kind}, {where}, amp {config.amp}")
    world.from_main(lambda: make_folder(Path(config.out)))
    return Trainer(config, model, source, world, device, reporter)


def _backend(config: TrainConfig, device: torch.device) -> str:
    """Which backend runs the fused operators. Raises UsageError if FASTRES_BACKEND cannot."""
    from fastres import backends
    from fastres.training.engine import DTYPES

    try:
        return backends.chosen(device, DTYPES[config.amp])
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None


def _choose_algorithms(deterministic: bool, device: torch.device) -> None:
    import torch

    if deterministic:
        # cuBLAS reads it when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
