"""What network a workload builds, in the terms in which other libraries build theirs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from ..workload import Workload

_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Architecture:
    """An ImageNet ResNet as torchvision numbers its options.

    Attributes:
        bottleneck: of bottlenecks, or of basic blocks.
        layers: blocks a stage.
        classes: outputs.
        groups, base_width: of the 3x3 convolutions of bottlenecks.
        first_strides: a bottleneck strides in its first 1x1 (the paper's) and not in its 3x3.
    """

    bottleneck: bool
    layers: tuple[int, int, int, int]
    classes: int
    groups: int = 1
    base_width: int = 64
    first_strides: bool = False

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1


def architecture(workload: Workload) -> Architecture | str:
    """The architecture of the workload's network, or the reason why it has none."""
    # by what makes the network: to build one on no device takes longer than to look it up
    return _of(workload.build)


@lru_cache(maxsize=64)
def _of(build) -> Architecture | str:
    with torch.device("meta"):
        return read(build(False))


def read(module: nn.Module) -> Architecture | str:
    """The architecture of a module, or the reason why it has none."""
    if not all(hasattr(module, name) for name in ("conv1", "bn1", "fc", *_STAGES)):
        return f"it runs ImageNet ResNets, and the workload is a {type(module).__name__}"
    stages = [getattr(module, name) for name in _STAGES]
    first, strided = stages[0][0], stages[1][0]
    bottleneck = hasattr(first, "conv3")
    found = Architecture(
        bottleneck,
        tuple(len(stage) for stage in stages),
        module.fc.out_features,
        first.conv2.groups,
        first.conv2.out_channels // first.conv2.groups if bottleneck else 64,
        bottleneck and strided.conv1.stride == (2, 2),
    )
    with torch.device("meta"):
        plain = _torchvision_like(found)
    if {name: t.shape for name, t in module.state_dict().items()} != plain:
        return "it has torchvision's layers and shortcuts, and the workload has others"
    dilated = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    return "it runs no dilated convolutions" if dilated else found


def _torchvision_like(found: Architecture) -> dict[str, torch.Size]:
    from ...layers import BasicBlock, Bottleneck
    from ...models.imagenet import ResNet

    bottleneck = {"groups": found.groups, "width_per_group": found.base_width}
    model = ResNet(
        Bottleneck if found.bottleneck else BasicBlock,
        found.layers,
        found.classes,
        **(bottleneck if found.bottleneck else {}),
    )
    return {name: t.shape for name, t in model.state_dict().items()}


def torchvision_like(workload: Workload) -> str | None:
    """The reason why torchvision and timm cannot build the network, or None."""
    found = architecture(workload)
    if isinstance(found, str):
        return found
    return (
        "it strides in the 3x3, and the workload in the first 1x1" if found.first_strides else None
    )
