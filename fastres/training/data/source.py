"""What every dataset hands to the engine: splits whose items are whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from fastres.training.data.augment import CropAndFlip, draws
from fastres.training.data.sampler import Key

Batch = tuple[torch.Tensor, torch.Tensor]  # images float32 [n, C, H, W], labels int64 [n]


class Split(Protocol):
    """A set of images that the loader asks for a batch at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[Key]) -> Batch: ...


@dataclass(frozen=True)
class Source:
    """A dataset opened for a run.

    `held_out` is evaluated after each epoch and picks best.pt; `test`, where there is one beside
    it, is evaluated once, after the last epoch.
    """

    train: Split
    held_out: Split
    held_out_name: str
    num_classes: int
    description: str
    test: Split | None = None


class ImageTensors:
    """Images held in memory: uint8 [N, C, H, W], with a mean image subtracted from each.

    Items are x / 255 - mean, then the augmentation (so that padding means "the mean colour").
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mean: torch.Tensor,
        augment: CropAndFlip | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.labels, self.mean = images, labels, mean
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        table = np.array(keys, dtype=np.int64)
        indices = torch.from_numpy(table[:, 1])
        images = self.images[indices].float().div_(255).sub_(self.mean)
        if self.augment is not None:
            images = self.augment(images, draws(self.seed, table[:, 0], table[:, 1], 3))
        return images, self.labels[indices]


def pixel_mean(images: torch.Tensor) -> torch.Tensor:
    """Per-pixel mean of uint8 images [N, C, H, W] in units of 255: float32 [C, H, W]."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in images.split(4096):  # a float64 copy of all of CIFAR-10 would take 1.2 GB
        total += part.sum(0, dtype=torch.int64)
    return (total / (255 * len(images))).float()


def split_indices(count: int, held_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random split of range(count) into (kept, held out), both sorted; fixed by the seed."""
    order = np.random.Generator(np.random.PCG64([seed, count])).permutation(count)
    kept, out = np.sort(order[held_out:]), np.sort(order[:held_out])
    return torch.from_numpy(kept), torch.from_numpy(out)
