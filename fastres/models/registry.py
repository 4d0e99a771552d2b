"""Networks by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

from . import cifar, imagenet

_CONSTRUCTORS = {
    constructor.__name__: constructor
    for constructor in (
        imagenet.resnet18,
        imagenet.resnet34,
        imagenet.resnet50,
        imagenet.resnet101,
        imagenet.resnet152,
        imagenet.resnext50_32x4d,
        imagenet.resnext101_32x8d,
        imagenet.resnext101_64x4d,
        imagenet.wide_resnet50_2,
        imagenet.wide_resnet101_2,
        imagenet.plain18,
        imagenet.plain34,
        cifar.resnet20,
        cifar.resnet32,
        cifar.resnet44,
        cifar.resnet56,
        cifar.resnet110,
        cifar.resnet1202,
        cifar.plain20,
        cifar.plain32,
        cifar.plain44,
        cifar.plain56,
        cifar.plain110,
    )
}


def names() -> list[str]:
    """The names `create` takes, ImageNet networks first."""
    return list(_CONSTRUCTORS)


def create(name: str, **options: Any) -> nn.Module:
    """The network called `name`, made by its constructor with `options`.

    Raises:
        ValueError: there is no such network; lists close names.
    """
    if name not in _CONSTRUCTORS:
        close = get_close_matches(str(name).lower(), _CONSTRUCTORS, n=3)
        raise ValueError(f"name must be one of {', '.join(close or _CONSTRUCTORS)}, got {name!r}")
    return _CONSTRUCTORS[name](**options)
