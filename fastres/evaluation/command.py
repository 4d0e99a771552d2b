"""`fastres eval`: trained networks by the paper's test protocols, alone or as an ensemble."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastres.evaluation.protocols import NAMES
from fastres.training.config import AMP_MODES, DATASETS
from fastres.training.errors import UsageError

if TYPE_CHECKING:
    from fastres.evaluation.networks import How, Network
    from fastres.evaluation.scores import Scorer
    from fastres.evaluation.sources import TestSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres eval`."""
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add(
        "--checkpoint", required=True, nargs="+", type=Path, metavar="PATH",
        help="checkpoints of fastres or files with a state_dict; several are an ensemble",
    )  # fmt: skip
    add("--data", choices=DATASETS, help="what the (first) checkpoint was trained on, unless given")
    add("--data-dir", help="folder of the files; of imagefolder DIR/val or DIR itself")
    add("--split", choices=("test", "train"), default="test", help="(%(default)s)")
    add("--protocol", choices=NAMES, default="center", help="(%(default)s)")
    group = parser.add_argument_group("the protocol")
    add = group.add_argument
    add("--crop", type=int, help="side of the crops in pixels (the size of training)")
    add("--size", type=int, help="shorter side an image is scaled to (256 for crops of 224)")
    add(
        "--sizes", type=_integers, metavar="N,N,...",
        help="shorter sides of multi-scale (224,256,384,480,640 for crops of 224)",
    )  # fmt: skip
    add("--flip", action="store_true", help="score the mirror images as well")
    add(
        "--average", choices=("probabilities", "scores"), default="probabilities",
        help="over views and networks, after or before the softmax (%(default)s)",
    )  # fmt: skip
    group = parser.add_argument_group("a file with a state_dict")
    add = group.add_argument
    add("--model", nargs="+", metavar="NAME", help="its network, or one name for each file")
    add("--shortcut", help="A, B or C (paper, section 3.3)")
    add("--variant", help="v1 or v1.5 for bottleneck networks")
    add("--classes", type=Path, metavar="PATH", help="the classes' names by output, one a line")
    add("--mean", type=_numbers, metavar="R,G,B", help="subtracted from values of 0 to 1")
    add("--std", type=_numbers, metavar="R,G,B", help="what is left is divided by it")
    group = parser.add_argument_group("running")
    add = group.add_argument
    add("--subset", action="store_true", help="accept classes without a folder")
    add("--skip-broken", action="store_true", help="leave out images that cannot be read")
    add(
        "--averaged", action=flag, default=True,
        help="the moving average of the weights where a run kept one (default), or the last ones",
    )  # fmt: skip
    add("--fused", action=flag, default=True, help="fused operators (default) or plain PyTorch")
    add("--optimize", action="store_true", help="fastres.optimize the network first")
    add("--amp", choices=AMP_MODES, default="none", help="(%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    add("--workers", type=int, default=0, help="processes that load images (%(default)s)")
    add("--worst", type=int, default=5, help="how many classes are printed (%(default)s)")
    add("--out", type=Path, default=Path("out/eval"), help="result.json, classes.csv (%(default)s)")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected sizes such as 224,256, got {text!r}") from None


def _numbers(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected three numbers such as 0.5,0.5,0.5, got {text!r}"
        ) from None
    return red, green, blue


def main(args: argparse.Namespace) -> int:
    """Tests, prints and writes. Raises TrainingError with the exit code of anything else."""
    _check(args)

    from fastres.evaluation import protocols, report, run, sources
    from fastres.evaluation.images import read_classes

    how = _how(args)
    networks = _load(args, how)
    classes = None if args.classes is None else read_classes(args.classes)
    test_set = sources.open_test_set(
        networks, args.data, args.data_dir, args.split, classes, args.subset
    )
    images = test_set.images
    crop = args.crop or _trained_size(networks, test_set)
    if images.side is not None and args.size is None and images.side < crop:
        raise UsageError(f"crop must be at most the images' {images.side} pixels, got {crop}")
    protocol = protocols.make(
        args.protocol, crop=crop, size=args.size, sizes=args.sizes, flip=args.flip,
        native=images.side is not None,
    )  # fmt: skip
    scorers = _scorers(args, networks, test_set, how)
    for network in networks:
        if network.averaged:
            print(f"{network.path}: the moving average of its weights")
    print(images.description)
    mean = f"; mean of {protocol.count} {args.average}" if protocol.count > 1 else ""
    print(protocol.description + mean, flush=True)
    outcome = run.run(
        images, protocol, scorers, args.average, how.device,
        batch_size=args.batch_size, workers=args.workers, skip_broken=args.skip_broken,
    )  # fmt: skip
    rows = report.class_rows(outcome.tally, images.classes)
    report.show(images, networks, outcome, rows, args.worst, args.average)
    settings = {name: getattr(args, name) for name in _RECORDED}
    result = report.as_dict(images, protocol, networks, outcome, settings, how.device)
    report.write(args.out, result, rows)
    print(f"written: {args.out / 'result.json'} and {args.out / 'classes.csv'}")
    return 0


_RECORDED = (
    "split", "average", "fused", "optimize", "amp", "batch_size", "workers", "mean", "std",
)  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    for name, least in (("crop", 1), ("batch_size", 1), ("workers", 0), ("worst", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")
    if args.std is not None and min(args.std) <= 0:
        raise UsageError(f"std must be numbers above 0, got {list(args.std)}")
    names = args.model or []
    if len(names) > 1 and len(names) != len(args.checkpoint):
        raise UsageError(
            f"model must be one name or one for each of the {len(args.checkpoint)} checkpoints, "
            f"got {len(names)}"
        )


def _how(args: argparse.Namespace) -> How:
    from fastres.evaluation.networks import How
    from fastres.training.distributed import choose_device
    from fastres.training.engine import DTYPES

    device = choose_device(args.device, 0)
    if args.amp == "fp16" and device.type == "cpu":
        raise UsageError("amp 'fp16' needs a GPU; on a CPU use 'bf16'")
    amp = None if args.amp == "none" else DTYPES[args.amp]
    return How(device, amp, args.fused, args.optimize, args.averaged)


def _load(args: argparse.Namespace, how: How) -> list[Network]:
    from fastres.evaluation import networks

    names = args.model or [None]
    names = names * len(args.checkpoint) if len(names) == 1 else names
    options = {"shortcut": args.shortcut, "variant": args.variant}
    pairs = zip(args.checkpoint, names, strict=True)
    return [networks.load(path, how, name, options) for path, name in pairs]


def _trained_size(networks: Sequence[Network], test_set: TestSet) -> int:
    from fastres.evaluation.networks import same
    from fastres.evaluation.sources import trained_size

    sizes = [trained_size(network, test_set) for network in networks]
    return same(networks, "the size of training (or give --crop)", sizes)


def _scorers(
    args: argparse.Namespace, networks: Sequence[Network], test_set: TestSet, how: How
) -> list[Scorer]:
    from fastres.evaluation.scores import Scorer
    from fastres.evaluation.sources import normalize_of

    # an optimised network is of that dtype already
    amp = None if how.optimize else how.amp
    return [
        Scorer(
            network, normalize_of(network, test_set, args.mean, args.std), how.device,
            args.average, amp, args.flip,
        )
        for network in networks
    ]  # fmt: skip
