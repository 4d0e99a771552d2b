"""What a sweep measures: the cases behind models, batches, dtypes and image sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

import torch

from .. import models
from ..training.errors import UsageError
from . import cases
from .workload import Workload

TRAIN, INFER, BLOCK, OPERATOR, MEMORY = KINDS = ("train", "infer", "block", "op", "memory")
DEFAULT_MODELS = {
    TRAIN: ("resnet50",),
    INFER: ("resnet50",),
    MEMORY: ("resnet50",),
    BLOCK: tuple(f"bottleneck/{layer}" for layer in cases.PLANES),
    OPERATOR: tuple(cases.OPERATORS),
}
# the depths that `18..152` and `20..1202` go through
_IMAGENET = (18, 34, 50, 101, 152)
_CIFAR = (20, 32, 44, 56, 110, 1202)
_RANGE = re.compile(r"(?:resnet)?(\d+)\.\.(?:resnet)?(\d+)")
_LARGE, _SMALL = 224, 32  # pixels


@dataclass(frozen=True)
class Spec:
    """One case; can be pickled and compared.

    Attributes:
        kind: of `KINDS`.
        model: a network, a block ("bottleneck/layer1") or an operator ("bn_act/layer1").
        batch, image_size: images, and pixels of each; a block or an operator is as large as it is
            in a network on such images.
        dtype: of `cases.DTYPES`.
        device: as torch names it.
        optimizer: whether a training step includes SGD.
        keep_memory: malloc is told never to give memory back.
    """

    kind: str
    model: str
    batch: int
    dtype: str
    image_size: int
    device: str = "cpu"
    optimizer: bool = False
    keep_memory: bool = False

    @property
    def name(self) -> str:
        """As in tables and files."""
        words = f"{self.kind} {self.model} {self.dtype}, batch {self.batch}, {self.image_size}px"
        words += ", SGD" if self.optimizer else ""
        return f"{words}, malloc keeps memory" if self.keep_memory else words

    @property
    def pixels(self) -> int:
        """Of all images: what the time of one model grows with."""
        return self.batch * self.image_size**2

    def workload(self) -> Workload:
        """What is run; makes the network to look at it."""
        device = torch.device(self.device)
        shape = (self.model, self.batch, self.image_size, self.dtype)
        if self.kind == INFER:
            return cases.inference(*shape, device=device)
        if self.kind == BLOCK:
            return cases.stage_block(*shape, device=device)
        if self.kind == OPERATOR:
            return cases.operator(*shape, device=device)
        return cases.network(*shape, device=device, optimizer=self.optimizer)


def specs(
    kind: str,
    model_names: Sequence[str],
    batches: Sequence[int],
    dtypes: Sequence[str],
    image_sizes: Sequence[int] | None,
    *,
    device: str,
    optimizer: bool,
    keep_memory: bool,
) -> list[Spec]:
    """Every combination, the first option varying slowest.

    Without image sizes a network is given its own: 224, or 32 for CIFAR's.
    """
    trains = kind in (TRAIN, MEMORY)
    found = []
    for model, dtype in product(model_names, dtypes):
        sizes = image_sizes or [default_size(kind, model)]
        for size, batch in product(sizes, batches):
            found.append(
                Spec(kind, model, batch, dtype, size, device, optimizer and trains, keep_memory)
            )
    return list(dict.fromkeys(found))


def model_names(kind: str, patterns: Iterable[str] | None) -> list[str]:
    """The models meant by names, by patterns such as `conv_bn_act/*` and by depths `18..152`.

    Raises:
        UsageError: one of them means nothing; names it.
    """
    if not patterns:
        return list(DEFAULT_MODELS[kind])
    known = known_models(kind)
    found: list[str] = []
    for pattern in patterns:
        meant = _depths(pattern) if kind not in (BLOCK, OPERATOR) else []
        meant = meant or [name for name in known if fnmatchcase(name, pattern)]
        if not meant and kind not in (BLOCK, OPERATOR) and pattern.startswith("torchvision."):
            meant = [pattern]
        if not meant:
            raise UsageError(
                f"model must be of {kind}'s: {', '.join(known)}; got {pattern!r}, which is none"
            )
        found.extend(meant)
    return list(dict.fromkeys(found))


def known_models(kind: str) -> list[str]:
    """The names of what a kind measures."""
    if kind == BLOCK:
        return [f"{block}/{layer}" for block in cases.BLOCKS for layer in cases.PLANES]
    if kind == OPERATOR:
        return list(cases.OPERATORS)
    return [*models.names(), *cases.SMALL]


def _depths(pattern: str) -> list[str]:
    found = _RANGE.fullmatch(pattern)
    if found is None:
        return []
    low, high = map(int, found.groups())
    for depths in (_IMAGENET, _CIFAR):
        if low in depths and high in depths and low <= high:
            return [f"resnet{depth}" for depth in depths if low <= depth <= high]
    raise UsageError(
        f"model {pattern!r}: a range goes up between two of "
        f"{', '.join(map(str, _IMAGENET))}, or between two of {', '.join(map(str, _CIFAR))}"
    )


def numbers(option: str, words: Sequence[str], least: int = 1) -> list[int]:
    """Numbers, and ranges that double: 1..8 is 1 2 4 8, 1..12 is 1 2 4 8 12.

    Raises:
        UsageError: a word is neither, or a number is below `least`.
    """
    found: list[int] = []
    for word in words:
        ends = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", word)
        low, high = (int(end or ends[1]) for end in ends.groups()) if ends else (0, 0)
        if not ends or low < least or high < low:
            raise UsageError(
                f"{option} must be numbers of at least {least}, or ranges such as 1..512 that "
                f"double; got {word!r}"
            )
        while low < high:
            found.append(low)
            low *= 2
        found.append(high)
    return list(dict.fromkeys(found))


def default_size(kind: str, model: str) -> int:
    """Pixels of the images that a model is meant for."""
    if kind in (BLOCK, OPERATOR):
        return _LARGE
    return _SMALL if is_small(model) else _LARGE


def is_small(model: str) -> bool:
    """Whether a network is one of CIFAR's, or of those to try a measurement with."""
    if model in cases.SMALL:
        return True
    if model not in models.names():
        return False
    with torch.device("meta"):
        return isinstance(models.create(model), models.CifarResNet)
