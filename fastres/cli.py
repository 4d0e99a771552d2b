"""The `fastres` command. Each subcommand is a module with `add_arguments(parser)` and `main(args)`.

Only the module of the command that was asked for is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from fastres.training.errors import TrainingError
from fastres.version import __version__

COMMANDS = {
    "train": ("fastres.training.train", "train a network"),
    "recipes": ("fastres.training.recipes.command", "the training recipes, with their sources"),
    "data": ("fastres.training.data_command", "mean images, and whether the input keeps up"),
    "demo": ("fastres.training.demo", "train a fused ResNet-20 on handwritten digits, and time it"),
    "experiment": ("fastres.experiments.command", "repeat an experiment of the paper"),
    "run": ("fastres.training.run", "run a training script with its ResNets fused"),
    "bench": ("fastres.bench.command", "time it beside PyTorch and others, and compare results"),
    "tune": ("fastres.tuning.command", "measure the kernels' configs on this GPU"),
    "traffic": ("fastres.bench.traffic_model_command", "bytes and flops of a training step"),
    "eval": ("fastres.evaluation.command", "test trained networks by the paper's protocols"),
    "models": ("fastres.evaluation.models_command", "the networks and the paper's figures"),
    "report": ("fastres.bench.report.command", "results files as a page, pictures and tables"),
    "profile": ("fastres.bench.profile_command", "the time of a step, operator by operator"),
    "info": ("fastres.info", "say what is installed and which backends work"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code: 2 for bad input, 1 for a run that failed,
    128 + the signal's number for one that was stopped."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="fastres", description="ResNet training with fused operators."
    )
    parser.add_argument("--version", action="version", version=f"fastres {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:
            import_module(module).add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return import_module(COMMANDS[args.command][0]).main(args)
    except TrainingError as error:
        print(f"fastres {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"fastres {args.command}: stopped", file=sys.stderr)
        return 130
