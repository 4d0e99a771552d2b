"""Per-pixel mean and colour components of the training crops: computed once, kept in a file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastres.training.data.color import principal_components
from fastres.training.data.source import Raw
from fastres.training.errors import DataError, TrainingError

FORMAT = "fastres-statistics"
FILE = "statistics.pt"  # in data_dir, unless another is named


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of RGB values in [0, 1] of the training crops, each image cut once as training would cut it.

    Attributes:
        mean: per-pixel mean, float32 [3, S, S].
        std: per-channel deviation over all pixels, float32 [3].
        values: eigenvalues of the covariance of RGB values, largest first, float64 [3].
        vectors: its eigenvectors in columns, float64 [3, 3].
        images: how many went into it.
    """

    mean: Tensor
    std: Tensor
    values: Tensor
    vectors: Tensor
    images: int

    @property
    def image_size(self) -> int:
        return self.mean.shape[-1]

    def save(self, path: Path) -> None:
        """Writes a file, whole or not at all. Raises TrainingError if it cannot be written."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **vars(self)}, buffer)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(f"cannot write {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Reads a file. Raises DataError if it is missing, truncated or another kind of file."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}; `fastres data mean` makes it"
            ) from None
        try:
            state = torch.load(io.BytesIO(raw), weights_only=True)
        except Exception:  # a damaged archive makes torch raise nearly any class
            state = None
        if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
            raise DataError(f"{path} is truncated or not a file of `fastres data mean`")
        return cls(**state)


class Accumulator:
    """Sums over uint8 crops; exact, so neither batches nor their order matter."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._products = torch.zeros(3, 3, dtype=torch.float64)
        self.images = 0

    def add(self, crops: Tensor) -> None:
        """uint8 [n, 3, S, S]."""
        if self._sum is None:
            self._sum = torch.zeros(crops.shape[1:], dtype=torch.int64)
        self._sum += crops.sum(0, dtype=torch.int64)
        for crop in crops:
            # integers below 2**53: float64 holds their sums exactly
            flat = crop.flatten(1).double()
            self._products += flat @ flat.T
        self.images += len(crops)

    def finish(self) -> Statistics:
        """Raises DataError if nothing was added."""
        if self._sum is None:
            raise DataError("no image to take the mean of")
        mean = self._sum.double() / (255 * self.images)
        pixels = self.images * mean.shape[1] * mean.shape[2]
        channel = mean.mean((1, 2)).numpy()
        covariance = self._products.numpy() / (255.0**2 * pixels) - np.outer(channel, channel)
        values, vectors = principal_components(covariance)
        return Statistics(
            mean=mean.float(),
            std=torch.from_numpy(np.sqrt(np.diag(covariance))).float(),
            values=torch.from_numpy(values),
            vectors=torch.from_numpy(vectors),
            images=self.images,
        )


def accumulate(batches: Iterable[Raw]) -> Statistics:
    """The statistics of all crops of `batches`."""
    sums = Accumulator()
    for batch in batches:
        if len(batch.images):
            sums.add(batch.images)
    return sums.finish()
