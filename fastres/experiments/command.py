"""`fastres experiment`: the paper's experiments, each a command that goes on where it stood."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastres.experiments import options
from fastres.training.errors import UsageError

_RESPONSE_IMAGES = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One command for each experiment."""
    kinds = parser.add_subparsers(dest="kind", metavar="EXPERIMENT", required=True)
    for name, summary in (
        ("degradation", "plain against residual networks of growing depth (figures 6 and 7)"),
        ("shortcuts", "shortcuts A, B and C side by side (section 4.1)"),
    ):
        own = kinds.add_parser(name, help=summary, description=summary)
        options.add_arguments(own, name)
    summary = "standard deviations of the layers' responses of trained networks (figure 7)"
    own = kinds.add_parser("responses", help=summary, description=summary)
    add = own.add_argument
    add("--checkpoint", required=True, nargs="+", type=Path, metavar="FILE")
    add("--out", type=Path, default=Path("out/responses"), help="folder (%(default)s)")
    add("--data-dir", help="where the checkpoints' dataset is now")
    add(
        "--images",
        type=int,
        default=_RESPONSE_IMAGES,
        help="test images that the responses are measured on (%(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def main(args: argparse.Namespace) -> int:
    """Runs the experiment and returns 0; raises TrainingError with the exit code of anything else.

    An outcome other than the paper's is no error: it is printed.
    """
    if args.kind == "responses":
        return _responses(args)

    from fastres.experiments.experiment import run

    run(options.make_plan(args), args.jobs, args.response_images)
    return 0


def _responses(args: argparse.Namespace) -> int:
    if args.images < 1:
        raise UsageError(f"images must be at least 1, got {args.images}")

    from fastres.experiments import outcome, responses
    from fastres.experiments.figures import check_matplotlib, draw_responses
    from fastres.training.distributed import choose_device

    check_matplotlib()
    device = choose_device(args.device, 0)
    rows, curves, sets = [], [], []
    for path in args.checkpoint:
        model, config = responses.load_network(path)
        split = responses.test_images(config, args.data_dir)
        found = responses.responses_to(model, split, args.images, device)
        rows += responses.rows(path, config.model, found)
        panel = "plain" if config.model.startswith("plain") else "residual"
        line = config.model + (f" {config.shortcut}" if config.shortcut else "")
        curves.append((panel, f"{line} seed {config.seed}", found))
        words = config.data
        if config.data == "procedural":
            words = f"procedural image set (generated from seed {config.data_seed}, not CIFAR-10)"
        sets.append(words)
        print(f"{path}: {line}, {len(found)} layers, {words}", flush=True)
    curves.sort(key=lambda curve: curve[0] != "plain")
    outcome.write_csv(args.out / "responses.csv", responses.COLUMNS, rows)
    figure = args.out / "responses.png"
    draw_responses(
        "Layer responses", f"test images of: {', '.join(dict.fromkeys(sets))}", curves, figure
    )
    print(f"figure: {figure}  numbers: {args.out / 'responses.csv'}")
    return 0
