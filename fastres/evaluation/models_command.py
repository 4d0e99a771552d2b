"""`fastres models`: every network with its size, beside what the paper says of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastres.training.errors import UsageError

if TYPE_CHECKING:
    from fastres.models.paper import Entry, Errors

_LEGEND = """\
A, B, C: the shortcut (B unless said); v1: the stride in the first 1x1, as in the paper, else v1.5.
Errors are top-1 / top-5 (where given): ImageNet validation, 10 crops, or CIFAR-10 test;
multi-scale: fully convolutional at five sizes, a single network. The paper gives ResNet-110
as 6.43, its best of five runs (6.61 +- 0.16)."""
_SMALLEST = 32  # pixels: five halvings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres models`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these networks (all)")
    parser.add_argument(
        "--image-size", type=int, help="count at this size (224 pixels; 32 for a CIFAR network)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the table to this file")


def main(args: argparse.Namespace) -> int:
    """Counts and prints. Raises UsageError for a name or a size that there is not."""
    from fastres.models import paper

    if args.image_size is not None and args.image_size < _SMALLEST:
        raise UsageError(f"image_size must be at least {_SMALLEST}, got {args.image_size}")
    chosen = _chosen(list(paper.entries()), args.names)
    size = args.image_size
    if size not in (None, 224) and any(entry.network.startswith("vgg") for entry in chosen):
        if args.names:
            raise UsageError(f"image_size must be 224 for VGG, whose first fc needs it, got {size}")
        chosen = [entry for entry in chosen if not entry.network.startswith("vgg")]
    rows = [_row(entry, size) for entry in chosen]
    _print(rows)
    if args.json is not None:
        from fastres.bench import results

        try:
            results.write(args.json, {"models": rows})
        except OSError as error:
            raise UsageError(f"cannot write json to {args.json}: {error.strerror}") from None
    return 0


def _chosen(entries: list[Entry], names: Sequence[str]) -> list[Entry]:
    known = {entry.network for entry in entries}
    for name in names:
        if name not in known:
            raise UsageError(f"names must be among {', '.join(sorted(known))}, got {name!r}")
    return [entry for entry in entries if not names or entry.network in names]


def _row(entry: Entry, image_size: int | None) -> dict[str, Any]:
    """A row of the table, and of the file."""
    size, counts = entry.counts(image_size)
    figures = entry.figures
    return {
        "label": entry.label,
        "network": entry.network,
        "options": dict(entry.options),
        "image_size": size,
        "parameters": counts.parameters,
        "multiply_adds": counts.multiply_adds,
        "paper": {
            "multiply_adds_1e9": figures.multiply_adds,
            "parameters_1e6": figures.parameters,
            "error_percent": _named(figures.error),
            "multi_scale_error_percent": _named(figures.multi_scale),
        },
    }


def _named(errors: Errors | None) -> dict[str, float | None] | None:
    return None if errors is None else dict(zip(("top1", "top5"), errors, strict=True))


def _print(rows: list[dict[str, Any]]) -> None:
    from fastres.bench.table import print_table

    cells = []
    for row in rows:
        paper = row["paper"]
        cells.append(
            [
                row["label"],
                row["image_size"],
                f"{row['parameters']:,}",
                f"{row['multiply_adds'] / 1e9:.3f}",
                _figure(paper["parameters_1e6"], "M"),
                _figure(paper["multiply_adds_1e9"], ""),
                _errors(paper["error_percent"]),
                _errors(paper["multi_scale_error_percent"]),
            ]
        )
    header = [
        "network", "image", "parameters", "10^9 mult-adds", "paper: params", "10^9 mult-adds",
        "error %", "multi-scale %",
    ]  # fmt: skip
    print_table("Networks, counted, and the paper's figures", header, cells)
    print(_LEGEND)


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:g}{unit}"


def _errors(errors: dict[str, float | None] | None) -> str:
    if errors is None:
        return ""
    return " / ".join(f"{value:.2f}" for value in errors.values() if value is not None)
