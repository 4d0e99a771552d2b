"""timm's ResNets; their parameters have torchvision's names."""

from __future__ import annotations

from torch import nn

from .architecture import Architecture
from .library import library_peer, quietly

TIMM = "timm"


def _construct(found: Architecture) -> nn.Module:
    resnet = quietly("timm.models.resnet")
    return resnet.ResNet(
        resnet.Bottleneck if found.bottleneck else resnet.BasicBlock,
        found.layers,
        num_classes=found.classes,
        cardinality=found.groups,
        base_width=found.base_width,
    )


PEERS = (library_peer(TIMM, _construct),)
