"""The result of a test: printed, as JSON, and as a table of all classes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastres.bench import environment, results
from fastres.bench.table import print_table
from fastres.evaluation.images import Images
from fastres.evaluation.metrics import Tally
from fastres.evaluation.networks import Network
from fastres.evaluation.protocols import Protocol
from fastres.evaluation.run import Outcome
from fastres.training.errors import TrainingError

COLUMNS = (
    "class", "images", "top1", "top1_low95", "top1_high95", "top5", "taken_for", "times",
)  # fmt: skip


def class_rows(tally: Tally, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row of `COLUMNS` for every class, in the order of the outputs; percentages."""
    rows = []
    for index, name in enumerate(classes):
        found = tally.per_class(index)
        low, high = found["top1"].interval
        taken_for = found["taken_for"]
        rows.append(
            {
                "class": name,
                "images": found["images"],
                "top1": found["top1"].percent,
                "top1_low95": low,
                "top1_high95": high,
                "top5": found["top5"].percent,
                "taken_for": "" if taken_for is None else classes[taken_for],
                "times": found["times"],
            }
        )
    return rows


def as_dict(
    images: Images,
    protocol: Protocol,
    networks: Sequence[Network],
    outcome: Outcome,
    settings: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """The result as it is written to result.json."""
    tally = outcome.tally
    members = outcome.members or [tally]
    return {
        "data": images.description,
        "protocol": {
            "name": protocol.name,
            "description": protocol.description,
            "sizes": list(protocol.sizes),
            "crop": protocol.crop,
            "flip": protocol.flip,
            "views": protocol.count,
        },
        "settings": dict(settings),
        "images": tally.images,
        "classes": len(images.classes),
        "skipped": outcome.skipped,
        **_metrics(tally),
        "networks": [
            {
                "checkpoint": str(network.path),
                "model": network.name,
                "averaged": network.averaged,
                **_metrics(member),
            }
            for network, member in zip(networks, members, strict=True)
        ],
        "milliseconds_per_image": outcome.milliseconds_per_image,
        "images_per_second": tally.images / outcome.seconds,
        "environment": environment.record(device),
    }


def _metrics(tally: Tally) -> dict[str, Any]:
    return {
        "top1": tally.top1.as_dict(),
        "top5": {**tally.top5.as_dict(), "of": tally.top},
        "loss": tally.loss,
    }


def write(folder: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """result.json and classes.csv in `folder`, each whole or not at all.

    Raises:
        TrainingError: the folder cannot be made or written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: "" if _is_nan(value) else value for key, value in row.items()})
    try:
        results.write(folder / "result.json", result)
        results.replace(folder / "classes.csv", text.getvalue())
    except OSError as error:
        raise TrainingError(f"cannot write the results to {folder}: {error.strerror}") from None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def show(
    images: Images,
    networks: Sequence[Network],
    outcome: Outcome,
    rows: Sequence[Mapping[str, Any]],
    worst: int,
    average: str,
) -> None:
    """Prints the result, and the `worst` classes by top-1."""
    tally = outcome.tally
    for network, member in zip(networks, outcome.members, strict=False):
        print(f"{network.path} ({network.name}): {_line(member)}")
    if outcome.members:
        print(f"ensemble of {len(networks)}, mean of their {average}: {_line(tally)}")
    else:
        print(_line(tally))
    skipped = f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
    print(
        f"{tally.images} images{skipped}; {outcome.milliseconds_per_image:.2f} ms an image in the "
        f"network{'s' if outcome.members else ''}, {tally.images / outcome.seconds:.1f} images/s "
        "with loading; intervals are Wilson's, 95%"
    )
    tested = [row for row in rows if row["images"]]
    tested.sort(key=lambda row: (row["top1"], row["top5"]))
    if worst and tested:
        cells = [
            [
                row["class"],
                row["images"],
                f"{row['top1']:.1f}",
                f"{row['top1_low95']:.1f} .. {row['top1_high95']:.1f}",
                f"{row['top5']:.1f}",
                f"{row['taken_for']} ({row['times']})" if row["times"] else "",
            ]
            for row in tested[:worst]
        ]
        header = ["class", "images", "top-1 %", "95%", f"top-{tally.top} %", "most taken for"]
        print_table(f"Worst {len(cells)} of {len(images.classes)} classes", header, cells)


def _line(tally: Tally) -> str:
    return f"top-1 {tally.top1}  top-{tally.top} {tally.top5}  loss {tally.loss:.4f}"
