"""Padded random crop and flip, drawn per image from (seed, epoch, index) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment: 2**64 over the golden ratio


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws(seed: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """`count` random words for each (epoch, index) pair: uint64 [n, count].

    A counter-based generator (splitmix64 finaliser over the key): image and epoch decide the
    words, so neither the batch an image falls in nor the worker that loads it matters.
    """
    step = np.uint64(_GOLDEN)
    key = _mix(np.full(len(indices), seed, dtype=np.uint64) + step)
    key = _mix(key + epochs.astype(np.uint64) * step)
    key = _mix(key + indices.astype(np.uint64) * step)
    counters = (np.arange(1, count + 1, dtype=np.uint64) * step)[None, :]
    return _mix(key[:, None] + counters)


@dataclass(frozen=True)
class CropAndFlip:
    """Zero padding by `padding`, a random crop of the old size, and a flip half of the time.

    Source: section 4.2 of the paper (4 pixels, flip).
    """

    padding: int
    flip: bool

    def __call__(self, images: torch.Tensor, words: np.ndarray) -> torch.Tensor:
        """images [n, C, H, W] and words uint64 [n, 3] -> images of the same shape."""
        return self.take(images, *self.places(words, *images.shape[2:]))

    def places(
        self, words: np.ndarray, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [n, height] and columns [n, width] of the padded images that are taken, int64.

        Columns fall where an image is mirrored. words: uint64 [n, 3].
        """
        span = np.uint64(2 * self.padding + 1)
        top, left = ((words[:, i] % span).astype(np.int64)[:, None] for i in (0, 1))
        rows, columns = top + np.arange(height), left + np.arange(width)
        if self.flip:
            mirror = (words[:, 2] >> np.uint64(63)).astype(bool)
            columns[mirror] = columns[mirror, ::-1]
        return torch.from_numpy(rows), torch.from_numpy(columns)

    def take(self, images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """images [n, C, H, W] of any dtype -> the same shape, from the places of `places`."""
        count, channels, height, width = images.shape
        padded = self.pad(images).flatten(2)
        flat = rows[:, :, None] * (width + 2 * self.padding) + columns[:, None, :]
        flat = flat.view(count, 1, -1).expand(-1, channels, -1)
        return padded.gather(2, flat).view(count, channels, height, width)

    def pad(self, images: torch.Tensor) -> torch.Tensor:
        """Zeros around [..., H, W]."""
        return F.pad(images, (self.padding,) * 4)
