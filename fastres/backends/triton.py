"""The launch operators on a GPU: Triton kernels, and cuDNN's convolutions where they are faster.

On CPU tensors the kernels run in Triton's interpreter, where TRITON_INTERPRET=1 was set before
Triton was imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch

from .triton_chain import (
    bn_max_pool,
    bn_max_pool_backward,
    bn_max_pool_backward_reduce,
    chain_backward,
)
from .triton_inference import conv_bias_act
from .triton_layers import (
    bn_apply,
    bn_backward,
    bn_backward_reduce,
    bn_stats,
    conv_backward,
    conv_bn_backward,
    conv_stats,
    max_pool,
    max_pool_backward,
    pad_shortcut,
    pad_shortcut_backward,
)
from .triton_moments import (
    expand,
    expand_backward_data,
    expand_backward_weight,
    expand_reduce,
    moment_batch_gradients,
    moment_gradients,
    moment_statistics,
    moments,
)

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

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is decided when Triton is imported."""
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "yes", "on"):
        return False
    if "triton" not in sys.modules:
        return True
    import triton

    return not isinstance(triton.language.standard.cdiv, triton.runtime.JITFunction)


def usable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels run on tensors of this device and dtype, else the reason why not."""
    if dtype not in _DTYPES:
        return f"dtype must be float16, bfloat16, float32 or float64, got {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu":
        if _interpreted():
            return None
        return "on CPU tensors it needs TRITON_INTERPRET=1, set before Triton is imported"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the kernels are for NVIDIA GPUs, got device {device}"
    if _interpreted():
        return "TRITON_INTERPRET=1 runs the kernels on CPU tensors only"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the GPU must have compute capability 8.0 or higher, got {major}.{minor}"
    return None
