"""What is counted over a test set: top-1, top-5, their intervals, and which classes go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from fastres.evaluation.scores import losses

_TOP = 5


@dataclass(frozen=True)
class Share:
    """Hits among images, in percent, with the bounds of its 95% interval."""

    hits: int
    images: int

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.images if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval: within [0, 100], sound for few images and for shares near 0."""
        if not self.images:
            return math.nan, math.nan
        z = NormalDist().inv_cdf(0.975)
        n, p = self.images, self.hits / self.images
        scale = 1 / (1 + z * z / n)
        centre = scale * (p + z * z / (2 * n))
        half = scale * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # at 0 and at n hits the bound is exact, whatever the rounding
        low = 0.0 if self.hits == 0 else 100 * (centre - half)
        high = 100.0 if self.hits == n else 100 * (centre + half)
        return low, high

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"percent": self.percent, "low95": low, "high95": high, "hits": self.hits}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.2f}% [{low:.2f}, {high:.2f}]"


class Tally:
    """Sums over batches of averaged outputs; all on the CPU.

    `confusion[i, j]` counts the images of class i that were taken for class j.
    """

    def __init__(self, num_classes: int) -> None:
        self.top = min(_TOP, num_classes)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.in_top = torch.zeros(num_classes, dtype=torch.int64)
        self.loss_sum = 0.0

    def add(self, outputs: Tensor, labels: Tensor, average: str) -> None:
        """Outputs [n, classes] fp32 and labels [n], both on the CPU."""
        best = outputs.topk(self.top, dim=1).indices
        self.confusion.index_put_((labels, best[:, 0]), torch.ones_like(labels), accumulate=True)
        self.in_top += torch.bincount(
            labels[(best == labels[:, None]).any(1)], minlength=len(self.in_top)
        )
        self.loss_sum += float(losses(average, outputs, labels).double().sum())

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy, of the averaged outputs."""
        return self.loss_sum / self.images

    @property
    def top1(self) -> Share:
        return Share(int(self.confusion.diagonal().sum()), self.images)

    @property
    def top5(self) -> Share:
        """Of five classes, or of all where there are fewer."""
        return Share(int(self.in_top.sum()), self.images)

    def per_class(self, index: int) -> dict[str, Any]:
        """Images, top-1 and top-5 of one class, and the class it is most often taken for."""
        row = self.confusion[index]
        images = int(row.sum())
        others = row.clone()
        others[index] = 0
        mistaken = int(others.argmax()) if int(others.sum()) else None
        return {
            "images": images,
            "top1": Share(int(row[index]), images),
            "top5": Share(int(self.in_top[index]), images),
            "taken_for": mistaken,
            "times": 0 if mistaken is None else int(others[mistaken]),
        }
