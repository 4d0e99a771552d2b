"""Which images make which step: a function of (seed, epoch, step), whatever the processes do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastres.training.errors import UsageError

Key = tuple[int, int]  # (epoch, index): all that an image's augmentation depends on


class TrainSampler:
    """Batches of one epoch's shuffle, from any step on, and the share of them one rank gets.

    `batch_size` counts the images of a step over all ranks, so the same options give the same
    steps on any number of processes. The last batch of an epoch may be smaller and is split as
    evenly as possible: every rank takes part in every step. A last batch of fewer than two images
    per rank is left out of that epoch, because batch norm needs two.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 2 * world_size:
            raise UsageError(
                f"batch_size must be at least 2 per process ({2 * world_size} for {world_size}), "
                f"got {batch_size}"
            )
        if length < 2 * world_size:
            raise UsageError(
                f"the training set must hold at least {2 * world_size} images for {world_size} "
                f"processes, got {length}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.length, self.batch_size)
        return whole + (rest >= 2 * self.world_size)

    def seek(self, epoch: int, step: int) -> None:
        """The next iteration yields the steps from `step` on of epoch `epoch`."""
        self.epoch, self.start = epoch, step

    def images_in(self, step: int) -> int:
        """Images of a step over all ranks."""
        return min(self.batch_size, self.length - step * self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.Generator(np.random.PCG64([self.seed, self.epoch])).permutation(
            self.length
        )
        epoch = self.epoch
        for step in range(self.start, self.steps_per_epoch):
            first, count = step * self.batch_size, self.images_in(step)
            low = first + self.rank * count // self.world_size
            high = first + (self.rank + 1) * count // self.world_size
            yield [(epoch, int(index)) for index in order[low:high]]


class EvaluationSampler:
    """Every image once, in order, every world_size-th to this rank; shares may differ by one."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.batch_size = max(1, batch_size // world_size)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]
