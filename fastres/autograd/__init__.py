"""The differentiable steps: what each saves and what its gradient is."""

from .batch_norm import Join, Normalisation
from .bn_act import BNAct
from .conv2d import Conv2d
from .conv_bn_act import ConvBNAct, Geometry
from .max_pool import MaxPool2d
from .pad_shortcut import PadShortcut
from .residual_blocks import ResidualBlocks
from .residual_saved import Block, Layer
from .stem import ConvBNMaxPool, Window

__all__ = [
    "BNAct",
    "Block",
    "Conv2d",
    "ConvBNAct",
    "ConvBNMaxPool",
    "Geometry",
    "Join",
    "Layer",
    "MaxPool2d",
    "Normalisation",
    "PadShortcut",
    "ResidualBlocks",
    "Window",
]
