"""The launch operator of inference on a GPU: a convolution whose epilogue does what follows it.

A Triton kernel or cuDNN's fused convolution, by the tuned table; PyTorch's convolution where
neither serves. Signature as in `ops.SCHEMAS`; kernels and formulas: docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference_layers
from .fakes import conv_output_size
from .triton_layers import dense, kernel, uses_tf32

_CUDNN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Fused(NamedTuple):
    """How the Triton kernel is launched: its block sizes, and whether fp32 is taken in TF32."""

    config: dict[str, int]
    tf32: bool


def chosen(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, relu: bool,
) -> Fused | None:  # fmt: skip
    """How the Triton kernel computes this convolution; None: another provider does.

    Without a ReLU there is no fused convolution of cuDNN's to choose, so that these have rows of
    their own in the tables, under "conv_bias". N*H*W counts as the next power of two: what is
    chosen once is remembered for every size.
    """
    if groups != 1 or x.dtype == torch.float64 or x.numel() == 0:
        return None
    if x.dtype == torch.bfloat16 and not x.is_cuda and kernel("launch").made():
        return None  # the interpreter's bf16 product is not a product
    images, _, height, width = conv_output_size(x, weight, stride, padding, dilation)
    rows = images * height * width
    if rows > kernel("launch").MAX_ROWS:
        return None
    tf32 = x.dtype == torch.float32 and uses_tf32()
    choice = kernel("tuned").choose(
        "conv_bias_act" if relu else "conv_bias", x.device, "tf32" if tf32 else x.dtype,
        taps=weight.shape[2] * weight.shape[3], inner=weight.shape[1], outer=weight.shape[0],
        rows=1 << (rows - 1).bit_length(),
    )  # fmt: skip
    return Fused(choice.config, tf32) if choice.provider == "triton" else None


def cudnn_takes(x: Tensor, relu: bool) -> bool:
    """Whether cuDNN may have a fused convolution for x; it says so for good when it is called."""
    return (
        relu
        and x.is_cuda
        and x.dtype in _CUDNN_DTYPES
        and torch.backends.cudnn.enabled
        and hasattr(torch, "cudnn_convolution_relu")
    )


def cudnn(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """relu(convolution of x + bias + shortcut) as one call of cuDNN; all of them channels_last.

    Raises:
        RuntimeError: cuDNN has no such kernel for this geometry or device.
    """
    geometry = (stride, padding, dilation, groups)
    if shortcut is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, *geometry)


def conv_bias_act(x, weight, bias, shortcut, stride, padding, dilation, groups, relu):
    x, weight, shortcut = dense(x), weight.to(x.dtype), dense(shortcut)
    geometry = (stride, padding, dilation, groups)
    fused = chosen(x, weight, *geometry, relu)
    if fused is not None:
        return kernel("conv_bias_act").conv_bias_act(
            x, weight, bias, shortcut, stride, padding, dilation, relu, fused.tf32, fused.config
        )
    if cudnn_takes(x, relu):
        try:
            rounded = None if bias is None else bias.to(x.dtype)
            return dense(cudnn(x, dense(weight), rounded, shortcut, *geometry))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass
    return reference_layers.conv_bias_act(x, weight, bias, shortcut, *geometry, relu)
