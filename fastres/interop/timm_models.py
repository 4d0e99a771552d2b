"""timm's own ResNets, fused, by names of their own: `timm.create_model("fastres_resnet50")`.

Importing this module registers them. Pretrained weights, `features_only`, `in_chans`,
`num_classes` and every other option are timm's: it builds them as it builds the networks without
the prefix, whose configurations of pretrained weights they have, only fused once constructed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from timm.models import resnet
from timm.models._builder import build_model_with_cfg
from timm.models._pretrained import DefaultCfg
from timm.models._registry import get_pretrained_cfg, register_model
from torch import nn

from .fuse import fuse

PREFIX = "fastres_"
_BASIC, _BOTTLENECK = {"block": resnet.BasicBlock}, {"block": resnet.Bottleneck}
# timm's arguments for each
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {**_BASIC, "layers": (2, 2, 2, 2)},
    "resnet34": {**_BASIC, "layers": (3, 4, 6, 3)},
    "resnet50": {**_BOTTLENECK, "layers": (3, 4, 6, 3)},
    "resnet101": {**_BOTTLENECK, "layers": (3, 4, 23, 3)},
    "resnet152": {**_BOTTLENECK, "layers": (3, 8, 36, 3)},
    "resnext50_32x4d": {
        **_BOTTLENECK, "layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4,
    },
    "wide_resnet50_2": {**_BOTTLENECK, "layers": (3, 4, 6, 3), "base_width": 128},
}  # fmt: skip

__all__: list[str] = []  # `register_model` adds the names


def _configurations(name: str) -> DefaultCfg:
    """timm's for one of its networks, complete: an address there follows from the name alone."""
    tags = deque(resnet.default_cfgs[name].tags)
    configurations = {
        tag: get_pretrained_cfg(f"{name}.{tag}" if tag else name, allow_unregistered=False)
        for tag in tags
    }
    return DefaultCfg(tags, configurations, resnet.default_cfgs[name].is_pretrained)


# where `register_model` looks
default_cfgs = {PREFIX + name: _configurations(name) for name in NETWORKS}


def _construct(**options) -> nn.Module:
    return fuse(resnet.ResNet(**options))


def _register(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options) -> nn.Module:
        return build_model_with_cfg(_construct, name, pretrained, **{**NETWORKS[name], **options})

    create.__name__ = create.__qualname__ = PREFIX + name
    create.__doc__ = f"timm's {name}, fused; arguments are timm's."
    return register_model(create)


for _name in NETWORKS:
    globals()[PREFIX + _name] = _register(_name)
