"""What the fake implementations of the launch operators share: the sizes of outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def statistics_dtype(activation: torch.dtype) -> torch.dtype:
    """The dtype in which statistics of an activation are kept: fp64 for fp64, else fp32."""
    return torch.float64 if activation == torch.float64 else torch.float32


def exact(y: Tensor) -> bool:
    """Whether a moment form's products of y take z - pivot. 16-bit ones take z: rounding z - p
    would flip ReLUs."""
    return y.dtype in (torch.float32, torch.float64)


def conv_output_size(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Sizes [N, C_out, H_out, W_out] of a 2-d convolution's output."""
    spatial = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    ]
    return [x.shape[0], weight.shape[0], *spatial]


def channels_last(like: Tensor, size: Sequence[int]) -> Tensor:
    """An uninitialised activation of `like`'s dtype and device."""
    return torch.empty(
        size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def vector(like: Tensor, *size: int) -> Tensor:
    """Uninitialised statistics of an activation `like`."""
    return torch.empty(size, dtype=statistics_dtype(like.dtype), device=like.device)


def weight_gradient(weight: Tensor, wanted: bool) -> Tensor:
    """An uninitialised gradient of a weight, [0] where it is not wanted."""
    return torch.empty_like(weight) if wanted else weight.new_empty(0)


def window_output(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The uninitialised output and index of a pooling of x."""
    spatial = [
        (x.shape[2 + i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in range(2)
    ]
    out = channels_last(x, [x.shape[0], x.shape[1], *spatial])
    return out, torch.empty_like(out, dtype=torch.uint8)
