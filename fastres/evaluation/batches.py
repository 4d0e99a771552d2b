"""Views of images in batches: loaded by worker processes, put together by their sizes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastres.evaluation.images import Images
from fastres.evaluation.protocols import Protocol
from fastres.training.errors import DataError

_LOADED = 16  # images that a worker hands over at a time
_HELD = 2**29  # bytes of views that may wait for others of their size

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Batch:
    """`views[i]` is uint8 [n, C, h, w]: the i-th view of each of n images of one size."""

    indices: Tensor
    labels: Tensor
    views: list[Tensor]


@dataclass(frozen=True)
class _Item:
    index: int
    label: int
    shapes: Shapes  # of its views, whose pixels lie one after the other


@dataclass(frozen=True)
class _Broken:
    """A DataError on its way out of a worker, which would wrap it in a traceback."""

    message: str


class _Views(Dataset):
    def __init__(self, images: Images, protocol: Protocol) -> None:
        self.images, self.protocol = images, protocol

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[_Item, list[Tensor]] | _Broken:
        try:
            image, label = self.images.read(index)
        except DataError as error:
            return _Broken(str(error))
        views = self.protocol.views(image)
        return _Item(index, label, tuple(tuple(view.shape) for view in views)), views


def _pack(found: list) -> tuple[list[_Item | _Broken], Tensor]:
    """Everything in one tensor: each one that leaves a worker takes a file descriptor."""
    items = [one if isinstance(one, _Broken) else one[0] for one in found]
    views = [view for one in found if not isinstance(one, _Broken) for view in one[1]]
    pixels = [view.reshape(-1) for view in views]
    return items, torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8)


def _unpack(items: list[_Item | _Broken], pixels: Tensor) -> Iterator[tuple]:
    start = 0
    for item in items:
        views = []
        for shape in item.shapes if isinstance(item, _Item) else ():
            end = start + torch.Size(shape).numel()
            # a copy: one view that waits must not keep those of all images loaded with it
            views.append(pixels[start:end].view(shape).clone())
            start = end
        yield item, views


def _ignore_signals(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group: the main process closes its workers itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Waiting:
    items: list[_Item] = field(default_factory=list)
    views: list[list[Tensor]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.items) * sum(torch.Size(shape).numel() for shape in self.items[0].shapes)

    def batch(self) -> Batch:
        return Batch(
            torch.tensor([item.index for item in self.items]),
            torch.tensor([item.label for item in self.items]),
            [torch.stack(same) for same in zip(*self.views, strict=True)],
        )


def load(
    images: Images,
    protocol: Protocol,
    batch_size: int,
    workers: int,
    broken: Callable[[str], None],
) -> Iterator[Batch]:
    """Every image once, in batches of at most `batch_size` whose views have the same sizes.

    Images of many sizes wait for others of their own; when `_HELD` bytes of them wait, those that
    hold most go first. `broken` is told of an image that cannot be read, and may raise.
    """
    loader = DataLoader(
        _Views(images, protocol),
        batch_size=min(batch_size, _LOADED),
        num_workers=workers,
        collate_fn=_pack,
        worker_init_fn=_ignore_signals,
        # without its own generator it would draw a seed from torch's
        generator=torch.Generator().manual_seed(0),
    )
    waiting: dict[Shapes, _Waiting] = {}
    for packed in loader:
        for item, views in _unpack(*packed):
            if isinstance(item, _Broken):
                broken(item.message)
                continue
            group = waiting.setdefault(item.shapes, _Waiting())
            group.items.append(item)
            group.views.append(views)
            if len(group.items) == batch_size:
                yield waiting.pop(item.shapes).batch()
        while sum(group.size for group in waiting.values()) > _HELD:
            largest = max(waiting, key=lambda shapes: waiting[shapes].size)
            yield waiting.pop(largest).batch()
    for group in waiting.values():
        yield group.batch()
