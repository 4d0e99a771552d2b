"""The fused operators without state: functions on tensors, with PyTorch's conventions.

Activations are [N, C, H, W] of any strides; results are channels_last. All functions work under
autocast, torch.compile and torch.fx (which sees each of them as one call).
"""

from .blocks import ConvBN, ResidualBlock, residual_blocks
from .layers import (
    bn_act,
    bn_add_act,
    conv2d,
    conv_bn_act,
    conv_bn_add_act,
    max_pool2d,
    pad_shortcut,
)
from .state import BatchNormState
from .stem import conv_bn_max_pool

__all__ = [
    "BatchNormState",
    "ConvBN",
    "ResidualBlock",
    "bn_act",
    "bn_add_act",
    "conv2d",
    "conv_bn_act",
    "conv_bn_add_act",
    "conv_bn_max_pool",
    "max_pool2d",
    "pad_shortcut",
    "residual_blocks",
]
