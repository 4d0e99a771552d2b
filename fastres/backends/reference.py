"""The launch operators in plain PyTorch: the oracle, and the path that runs anywhere."""

from __future__ import annotations

import torch

from .reference_blocks import (
    bn_max_pool,
    bn_max_pool_backward,
    bn_max_pool_backward_reduce,
    chain_backward,
    expand,
    expand_backward_data,
    expand_backward_weight,
    expand_reduce,
    moments,
)
from .reference_layers import (
    bn_apply,
    bn_backward,
    bn_backward_reduce,
    bn_stats,
    conv_backward,
    conv_bias_act,
    conv_bn_backward,
    conv_stats,
    max_pool,
    max_pool_backward,
    pad_shortcut,
    pad_shortcut_backward,
)
from .reference_moments import moment_batch_gradients, moment_gradients, moment_statistics

__all__ = [
    "bn_apply",
    "bn_backward",
    "bn_backward_reduce",
    "bn_max_pool",
    "bn_max_pool_backward",
    "bn_max_pool_backward_reduce",
    "bn_stats",
    "chain_backward",
    "conv_backward",
    "conv_bias_act",
    "conv_bn_backward",
    "conv_stats",
    "expand",
    "expand_backward_data",
    "expand_backward_weight",
    "expand_reduce",
    "max_pool",
    "max_pool_backward",
    "moment_batch_gradients",
    "moment_gradients",
    "moment_statistics",
    "moments",
    "pad_shortcut",
    "pad_shortcut_backward",
    "usable",
]


def usable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs on every device and floating dtype."""
    return None
