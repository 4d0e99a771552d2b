"""The differentiable steps: what each saves and what its gradient is."""

from .batch_norm import Join, Normalisation
from .bn_act import BNAct
from .conv2d import Conv2d
from .conv_bn_act import ConvBNAct, Geometry
from .max_pool import MaxPool2d
from .pad_shortcut import PadShortcut

__all__ = [
    "BNAct",
    "Conv2d",
    "ConvBNAct",
    "Geometry",
    "Join",
    "MaxPool2d",
    "Normalisation",
    "PadShortcut",
]
