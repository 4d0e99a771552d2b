"""Small training runs for the tests: a tiny network on synthetic images; comparing two runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastres.training import checkpoint
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.distributed import World
from fastres.training.engine import Trainer
from fastres.training.graph import Graphs
from fastres.training.reporter import Silent

TIMINGS = ("seconds", "images_per_second", "input_share")

# a quick run through the command: 6 steps an epoch, the last of 10 images
COMMAND = [
    "train", "--data", "synthetic", "--image-size", "8", "--num-images", "90", "--batch-size",
    "16", "--no-fused", "--device", "cpu", "--log-every", "1", "--epochs", "2", "--milestones", "1",
]  # fmt: skip


class Tiny(nn.Sequential):
    """Two convolutions, two batch norms and a classifier; 8x8 images train in milliseconds."""

    def __init__(self, width: int = 8) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 10),
        )


def tiny_config(out: Path, **options: Any) -> TrainConfig:
    """Six steps an epoch of 16 images, the last of 10; two epochs."""
    values = {
        "num_images": 90, "image_size": 8, "batch_size": 16, "epochs": 2, "milestones": (1,),
        "device": "cpu", "out": str(out), "log_every": 1,
    }  # fmt: skip
    if "iterations" in options:
        del values["epochs"]
    return TrainConfig.build("synthetic", **{**values, **options})


def tiny_trainer(
    config: TrainConfig,
    model: nn.Module | None = None,
    reporter: Silent | None = None,
    graphs: Graphs | None = None,
) -> Trainer:
    """A trainer in this process alone, on the config's device; makes the run's folder."""
    Path(config.out).mkdir(parents=True, exist_ok=True)
    return Trainer(
        config, model or Tiny(), open_source(config), World(), torch.device(config.device),
        reporter or Silent(), graphs,
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    """A log's rows as written, without the columns that hold times."""
    with open(path, newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in TIMINGS}
            for row in csv.DictReader(file)
        ]


def assert_same_run(one: Path, other: Path) -> None:
    """Both folders' losses, weights, momenta and generators are bitwise equal."""
    for name in ("steps.csv", "epochs.csv"):
        assert rows(one / name) == rows(other / name)
    for name in ("last.pt", "best.pt"):
        a, b = (checkpoint.load(folder / name) for folder in (one, other))
        for part in ("model", "optimizer", "schedule", "scaler", "rng", "average", "normalize"):
            _assert_equal(a.get(part), b.get(part), part)
        for timing in ("seconds", "waited"):
            del a["progress"][timing], b["progress"][timing]
        assert a["progress"] == b["progress"]


def _assert_equal(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_equal(a, b, f"{where}[{index}]")
    else:
        assert one == other, where
