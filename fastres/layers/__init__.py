"""Modules that own the parameters and buffers of a residual network."""

from .blocks import BasicBlock, Bottleneck, PlainBlock, check_variant, conv1x1, conv3x3, make_relu
from .fusion import conv_norm_act, conv_norm_add_act, max_pool
from .shortcuts import PadShortcut, make_shortcut

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "PadShortcut",
    "PlainBlock",
    "check_variant",
    "conv1x1",
    "conv3x3",
    "conv_norm_act",
    "conv_norm_add_act",
    "make_relu",
    "make_shortcut",
    "max_pool",
]
