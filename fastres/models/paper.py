"""The networks beside what the paper (arXiv 1512.03385) says of them, in its own units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import registry
from .cifar import CifarResNet
from .counting import Counts, count
from .vgg import vgg

Errors = tuple[float, float | None]  # top-1 and top-5, percent; the paper leaves some out


@dataclass(frozen=True)
class Figures:
    """What the paper says of one network; None where it says nothing.

    multiply_adds: in 10^9 (table 1 and section 3.3). parameters: in 10^6 (table 6). error: on
    ImageNet's validation set with 10 crops (table 3), on CIFAR-10's test set (table 6).
    multi_scale: a single network on ImageNet's validation set, fully convolutional at five sizes
    (table 4).
    """

    multiply_adds: float | None = None
    parameters: float | None = None
    error: Errors | None = None
    multi_scale: Errors | None = None


@dataclass(frozen=True)
class Entry:
    """A network under the label it is shown by. `options` are its constructor's."""

    label: str
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)

    def make(self) -> nn.Module:
        """The network on the meta device: sizes without data."""
        with torch.device("meta"):
            if self.network.startswith("vgg"):
                return vgg(self.network)
            return registry.create(self.network, **self.options)

    def counts(self, image_size: int | None = None) -> tuple[int, Counts]:
        """(side of the images, parameters and multiply-adds at it); by default the paper's side."""
        model = self.make()
        if image_size is None:
            image_size = 32 if isinstance(model, CifarResNet) else 224
        return image_size, count(model, image_size)


def _entry(label: str, figures: Figures, **options: Any) -> Entry:
    return Entry(label, label.partition(" ")[0], options, figures)


# networks that the paper has in a form that is not the constructor's default get a row for each
# form; the paper's figures stand on the form that they are of
_ROWS = (
    _entry("resnet18 A", Figures(1.8, error=(27.88, None)), shortcut="A"),
    _entry("resnet34 A", Figures(3.6, error=(25.03, 7.76)), shortcut="A"),
    _entry("resnet34", Figures(3.6, error=(24.52, 7.46), multi_scale=(21.84, 5.71))),
    _entry("resnet34 C", Figures(error=(24.19, 7.40), multi_scale=(21.53, 5.60)), shortcut="C"),
    _entry("resnet50 v1", Figures(3.8, None, (22.85, 6.71), (20.74, 5.25)), variant="v1"),
    _entry("resnet101 v1", Figures(7.6, None, (21.75, 6.05), (19.87, 4.60)), variant="v1"),
    _entry("resnet152 v1", Figures(11.3, None, (21.43, 5.71), (19.38, 4.49)), variant="v1"),
    _entry("plain18", Figures(1.8, error=(27.94, None))),
    _entry("plain34", Figures(3.6, error=(28.54, 10.02))),
    _entry("resnet20", Figures(parameters=0.27, error=(8.75, None))),
    _entry("resnet32", Figures(parameters=0.46, error=(7.51, None))),
    _entry("resnet44", Figures(parameters=0.66, error=(7.17, None))),
    _entry("resnet56", Figures(parameters=0.85, error=(6.97, None))),
    _entry("resnet110", Figures(parameters=1.7, error=(6.43, None))),
    _entry("resnet1202", Figures(parameters=19.4, error=(7.93, None))),
)
_VGG = (
    _entry("vgg16", Figures(15.3, error=(28.07, 9.33))),
    _entry("vgg19", Figures(19.6)),
)


def entries() -> Iterator[Entry]:
    """Every network of `names()`, those the paper has in several forms once for each, then VGG."""
    for name in registry.names():
        own = [entry for entry in _ROWS if entry.network == name]
        if not any(entry.label == name for entry in own):
            yield Entry(name, name)
        yield from own
    yield from _VGG
