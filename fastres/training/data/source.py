"""What every dataset hands to the engine: splits whose items are whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fastres.training.data.augment import CropAndFlip, draws
from fastres.training.data.normalize import Normalize, pixel_mean, scale
from fastres.training.data.sampler import Key

__all__ = [
    "Batch", "Finish", "ImageTensors", "Normalize", "Raw", "RawSplit", "Source", "Split",
    "pixel_mean", "split_indices",
]  # fmt: skip

Batch = tuple[Tensor, Tensor]  # images float32 [n, C, H, W], labels int64 [n]


class Raw(NamedTuple):
    """A batch as the host leaves it, for the device to finish.

    `images` are uint8 [n, C, H, W], `labels` int64 [n]; `draws` are tensors of n rows that the
    split's own finisher reads; `skipped` names images that could not be read and are not in it.
    """

    images: Tensor
    labels: Tensor
    draws: dict[str, Tensor]
    skipped: tuple[str, ...] = ()


Finish = Callable[[Raw], Tensor]  # to float32 images on the device that the Raw is on


class Split(Protocol):
    """A set of images that the loader asks for a batch at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[Key]) -> Batch: ...


@runtime_checkable
class RawSplit(Protocol):
    """A split whose images stay bytes until they are on the device.

    `__getitems__` gives what `fetch` and then the finisher of a CPU give.
    """

    def __len__(self) -> int: ...

    def fetch(self, keys: Sequence[Key]) -> Raw: ...

    def finisher(
        self, device: torch.device, layout: torch.memory_format = torch.preserve_format
    ) -> Finish: ...


@dataclass(frozen=True)
class Source:
    """A dataset opened for a run.

    `held_out` is evaluated after each epoch and picks best.pt; `test`, where there is one beside
    it, is evaluated once, after the last epoch. `normalize` is what the network sees of an image
    and `classes` are the classes' names, by label; both go into checkpoints.
    """

    train: Split
    held_out: Split
    held_out_name: str
    num_classes: int
    description: str
    test: Split | None = None
    normalize: Normalize | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.normalize is None and isinstance(self.train, ImageTensors):
            object.__setattr__(self, "normalize", Normalize(self.train.mean))


class ImageTensors:
    """Images held in memory: uint8 [N, C, H, W], with a mean subtracted from each.

    Items are x / 255 - mean, then the augmentation (so that padding means "the mean colour"). The
    host cuts and mirrors bytes; the device subtracts the mean, cut and mirrored in the same way.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor,
        augment: CropAndFlip | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.labels, self.mean = images, labels, mean
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        raw = self.fetch(keys)
        return self.finisher(raw.images.device)(raw), raw.labels

    def fetch(self, keys: Sequence[Key]) -> Raw:
        """A batch of bytes, augmented."""
        table = np.array(keys, dtype=np.int64)
        indices = torch.from_numpy(table[:, 1])
        images, labels = self.images[indices], self.labels[indices]
        if self.augment is None:
            return Raw(images, labels, {})
        words = draws(self.seed, table[:, 0], table[:, 1], 3)
        rows, columns = self.augment.places(words, *images.shape[2:])
        return Raw(
            self.augment.take(images, rows, columns), labels, {"rows": rows, "columns": columns}
        )

    def finisher(
        self, device: torch.device, layout: torch.memory_format = torch.preserve_format
    ) -> Finish:
        """What turns a batch of `fetch`, brought to `device`, into float32 images."""
        mean = self.mean.to(device)
        if self.augment is None:
            plain = Normalize(mean)
            return lambda raw: plain(raw.images, layout)
        mean = mean.expand(-1, *self.images.shape[2:])
        padded = self.augment.pad(mean).permute(1, 2, 0).contiguous()

        def finish(raw: Raw) -> Tensor:
            rows, columns = raw.draws["rows"], raw.draws["columns"]
            windows = padded[rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            return scale(raw.images, layout).sub_(windows)

        return finish


def split_indices(count: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random split of range(count) into (kept, held out), both sorted; fixed by the seed."""
    order = np.random.Generator(np.random.PCG64([seed, count])).permutation(count)
    kept, out = np.sort(order[held_out:]), np.sort(order[:held_out])
    return torch.from_numpy(kept), torch.from_numpy(out)
