"""Images that are decoded when a batch asks for them, whatever they are stored in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastres.training.data.augment import draws
from fastres.training.data.color import WORDS, ColorPCA
from fastres.training.data.normalize import Normalize, scale
from fastres.training.data.sampler import Key
from fastres.training.data.source import Batch, Finish, Raw
from fastres.training.data.views import View
from fastres.training.errors import DataError

_ATTEMPTS = 100  # broken images in a row that are stepped over


class Store(Protocol):
    """Where images lie."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int: ...

    def image(self, index: int) -> Any:
        """An RGB PIL image. Raises DataError naming the one that cannot be read."""


class DecodedSplit:
    """Images of a store, cut by a view; all that is random is tied to (seed, epoch, index).

    With `skip_broken`, in training the next image that can be read takes the place of a broken
    one, so that steps keep their sizes; in a test a broken one is left out. Without, a broken image
    raises DataError.
    """

    def __init__(
        self,
        store: Store,
        view: View,
        seed: int,
        normalize: Normalize,
        color: ColorPCA | None = None,
        skip_broken: bool = False,
        training: bool = False,
    ) -> None:
        self.store, self.view, self.seed = store, view, seed
        self.normalize, self.color = normalize, color
        self.skip_broken, self.training = skip_broken, training

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        raw = self.fetch(keys)
        return self.finisher(raw.images.device)(raw), raw.labels

    def fetch(self, keys: Sequence[Key]) -> Raw:
        """Decodes and cuts a batch."""
        table = np.array(keys, dtype=np.int64)
        words = draws(self.seed, table[:, 0], table[:, 1], 1 + WORDS)
        kept: list[int] = []
        images: list[Tensor] = []
        labels: list[int] = []
        skipped: list[str] = []
        # the transforms draw from torch's global generator: lend it to them
        with torch.random.fork_rng(devices=[]):
            for place, (_, index) in enumerate(keys):
                found = self._read(index, skipped)
                if found is None:
                    continue
                torch.manual_seed(int(words[place, 0] >> np.uint64(1)))
                images.append(self.view(found[0]))
                labels.append(found[1])
                kept.append(place)
        shifts = {} if self.color is None else {"shift": self.color.shifts(words[kept, 1:])}
        together = torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        return Raw(together, torch.tensor(labels, dtype=torch.int64), shifts, tuple(skipped))

    def finisher(
        self, device: torch.device, layout: torch.memory_format = torch.preserve_format
    ) -> Finish:
        """What turns a batch of `fetch`, brought to `device`, into float32 images."""
        normalize = self.normalize.to(device)

        def finish(raw: Raw) -> Tensor:
            shift = raw.draws.get("shift")
            if shift is not None:
                shift = shift[:, :, None, None]
            return normalize.finish(scale(raw.images, layout), normalize.mean, shift)

        return finish

    def _read(self, index: int, skipped: list[str]) -> tuple[Any, int] | None:
        """An image and its label; None to go on without. What is skipped is put on the list."""
        for place in self._places(index):
            try:
                return self.store.image(place), self.store.label(place)
            except DataError as error:
                if not self.skip_broken:
                    raise
                skipped.append(str(error))
        if self.training:
            raise DataError(f"no image can be read; the last: {skipped[-1]}")
        return None

    def _places(self, index: int) -> Iterator[int]:
        attempts = min(_ATTEMPTS, len(self)) if self.training and self.skip_broken else 1
        return ((index + offset) % len(self) for offset in range(attempts))
