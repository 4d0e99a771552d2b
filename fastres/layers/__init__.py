"""Modules that own the parameters and buffers of a residual network."""

from .blocks import (
    BasicBlock,
    Block,
    Bottleneck,
    PlainBlock,
    check_memory,
    check_variant,
    conv1x1,
    conv3x3,
    make_relu,
)
from .fusion import conv_norm_act, conv_norm_add_act, max_pool, stem, stem_obstacle
from .shortcuts import PadShortcut, make_shortcut
from .stage import Stage, run_obstacle

__all__ = [
    "BasicBlock",
    "Block",
    "Bottleneck",
    "PadShortcut",
    "PlainBlock",
    "Stage",
    "check_memory",
    "check_variant",
    "conv1x1",
    "conv3x3",
    "conv_norm_act",
    "conv_norm_add_act",
    "make_relu",
    "make_shortcut",
    "max_pool",
    "run_obstacle",
    "stem",
    "stem_obstacle",
]
