"""How far a run is, what it hands back, and the row of an epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastres.training.evaluate import Metrics


@dataclass
class Progress:
    """How far a run is. `step` counts inside the epoch; at its last step it is yet to evaluate.

    `waited` are the seconds of `seconds` spent waiting for images, `skipped` the times that an
    image could not be read; `window_correct` and `window_images` are the epoch's counts when the
    training error was last looked at.
    """

    epoch: int = 0
    step: int = 0
    iteration: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    images: int = 0
    seconds: float = 0.0
    best_top1: float = -1.0
    waited: float = 0.0
    skipped: int = 0
    window_correct: float = 0.0
    window_images: int = 0


@dataclass
class Result:
    """What a run hands back: a row per epoch of this process's life, and the last metrics.

    `averaged_test` is the averaged network's, where there is one.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    test: Metrics | None = None
    averaged_test: Metrics | None = None


def epoch_row(
    progress: Progress,
    loss_sum: float,
    correct: float,
    lr: float,
    metrics: Metrics,
    averaged: Metrics | None,
) -> dict[str, Any]:
    """One row of epochs.csv: sums over the training images, metrics of the held-out ones."""
    return {
        "epoch": progress.epoch + 1,
        "iteration": progress.iteration,
        "lr": lr,
        "train_loss": loss_sum / progress.images,
        "train_top1": 100 * correct / progress.images,
        "loss": metrics.loss,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(progress.images / max(progress.seconds, 1e-9), 1),
        "input_share": round(progress.waited / max(progress.seconds, 1e-9), 4),
        "skipped": progress.skipped,
        "ema_loss": None if averaged is None else averaged.loss,
        "ema_top1": None if averaged is None else averaged.top1,
        "ema_top5": None if averaged is None else averaged.top5,
    }
