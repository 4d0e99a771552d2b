"""From uint8 images to what a network sees: (x / 255 - mean) / std, on the images' device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastres.training.errors import CheckpointError, UsageError


@dataclass(frozen=True, eq=False)
class Normalize:
    """Pixel values divided by 255, minus `mean`, over `std` if there is one.

    `mean` is [C, H, W] (per pixel) or [C, 1, 1] (per channel), `std` [C, 1, 1]; both in units of
    255, float32.
    """

    mean: Tensor
    std: Tensor | None = None

    @property
    def per_pixel(self) -> bool:
        return self.mean.shape[1:] != (1, 1)

    def to(self, device: torch.device) -> Normalize:
        """The same with its tensors on `device`."""
        std = None if self.std is None else self.std.to(device)
        return Normalize(self.mean.to(device), std)

    def __call__(self, images: Tensor, layout: torch.memory_format | None = None) -> Tensor:
        """Images [n, C, H, W], uint8 or with values 0 to 255, as float32 in `layout`."""
        return self.finish(scale(images, layout), self.mean)

    def finish(self, scaled: Tensor, mean: Tensor, shift: Tensor | None = None) -> Tensor:
        """(scaled - mean + shift) / std, in the place of `scaled`."""
        scaled.sub_(mean)
        if shift is not None:
            scaled.add_(shift)
        return scaled if self.std is None else scaled.div_(self.std)

    def as_dict(self) -> dict[str, Any]:
        """Tensors and None only, so that a checkpoint of it loads with weights_only=True."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalize:
        return cls(values["mean"], values["std"])

    def same_as(self, other: Normalize) -> bool:
        """Whether both do the same to every image, bit for bit."""
        pairs = ((self.mean, other.mean), (self.std, other.std))
        return all(
            a is b is None or (a is not None and b is not None and torch.equal(a, b))
            for a, b in pairs
        )


def check_same_normalize(
    path: Path, saved: Mapping[str, Any] | None, own: Normalize | None
) -> None:
    """Raises CheckpointError if a checkpoint's images were normalised in another way."""
    if saved and own is not None and not Normalize.from_dict(saved).same_as(own):
        raise CheckpointError(
            f"{path} is of another run: the mean or deviation that it subtracts from images "
            "is not this dataset's"
        )


def scale(images: Tensor, layout: torch.memory_format | None = None) -> Tensor:
    """Images of values 0 to 255 as float32 of 0 to 1, a new tensor."""
    layout = layout or torch.preserve_format
    return images.to(torch.float32, memory_format=layout, copy=True).div_(255)


def mean_of(images: Tensor, kind: str) -> Normalize:
    """The "pixel" or the "channel" mean of uint8 images [N, C, H, W]."""
    mean = pixel_mean(images)
    if kind == "channel":
        return Normalize(mean.double().mean((1, 2), keepdim=True).float())
    if kind != "pixel":
        raise UsageError(f"mean must be pixel or channel, got {kind!r}")
    return Normalize(mean)


def pixel_mean(images: Tensor) -> Tensor:
    """Per-pixel mean of uint8 images [N, C, H, W] in units of 255: float32 [C, H, W]."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in images.split(4096):  # a float64 copy of all of CIFAR-10 would take 1.2 GB
        total += part.sum(0, dtype=torch.int64)
    return (total / (255 * len(images))).float()
