"""torchvision's ResNets."""

from __future__ import annotations

from torch import nn

from .architecture import Architecture
from .library import library_peer, quietly

TORCHVISION = "torchvision"


def _construct(found: Architecture) -> nn.Module:
    resnet = quietly("torchvision.models.resnet")
    return resnet.ResNet(
        resnet.Bottleneck if found.bottleneck else resnet.BasicBlock,
        list(found.layers),
        num_classes=found.classes,
        groups=found.groups,
        width_per_group=found.base_width,
    )


PEERS = (library_peer(TORCHVISION, _construct),)
