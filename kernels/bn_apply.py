"""Normalise, add a shortcut and apply ReLU, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import (
    load_bias,
    load_channels,
    load_scale,
    normalise,
    relu,
    strided_rows,
    tile_of,
    tile_offsets,
)
from .launch import accumulator, blocks, launch, new_activation, rows_of, strided_elements


@triton.jit
def bn_apply_kernel(
    y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    s_ptr, s_mean_ptr, s_invstd_ptr, s_weight_ptr, s_bias_ptr, out_ptr,
    rows, channels, height, width, s_channels, s_height, s_width,
    SHORTCUT: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = relu((y - mean) * invstd * weight + bias + shortcut)

    The shortcut is nothing, s, the same normalisation of s, or ("pad") pixel (i*STRIDE, j*STRIDE)
    of s in its first s_channels columns. Computes in ACC.
    Reads y [M, C] and s; writes out [M, C].
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    rows_here = row0 + tl.arange(0, BLOCK_M)
    inside = cols < channels
    valid = (rows_here < rows)[:, None]
    mask = valid & inside[None, :]
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    mean = load_channels(mean_ptr, cols, inside, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, inside, ACC)
    bias = load_bias(bias_ptr, cols, inside, ACC)
    value = normalise(tl.load(y_ptr + offsets, mask=mask, other=0.0).to(ACC), mean, scale, bias)
    if SHORTCUT == "identity":
        value += tl.load(s_ptr + offsets, mask=mask, other=0.0).to(ACC)
    elif SHORTCUT == "bn":
        s_mean = load_channels(s_mean_ptr, cols, inside, ACC)
        s_scale = load_scale(s_invstd_ptr, s_weight_ptr, cols, inside, ACC)
        s_bias = load_bias(s_bias_ptr, cols, inside, ACC)
        s = tl.load(s_ptr + offsets, mask=mask, other=0.0).to(ACC)
        value += normalise(s, s_mean, s_scale, s_bias)
    elif SHORTCUT == "pad":
        source = strided_rows(rows_here, height, width, s_height, s_width, STRIDE, STRIDE)
        s_offsets = source[:, None] * s_channels + cols[None, :]
        s_mask = valid & (cols < s_channels)[None, :]
        value += tl.load(s_ptr + s_offsets, mask=s_mask, other=0.0).to(ACC)
    if RELU:
        value = relu(value)
    tl.store(out_ptr + offsets, value.to(out_ptr.dtype.element_ty), mask=mask)


def shortcut_kind(y: Tensor, shortcut: Tensor | None, s_mean: Tensor | None, stride: int) -> str:
    """Which of the join's shortcuts is meant: "none", "identity", "bn" or "pad"."""
    if shortcut is None:
        return "none"
    if s_mean is not None:
        return "bn"
    return "identity" if stride == 1 and shortcut.shape[1] == y.shape[1] else "pad"


def bn_apply(
    y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    shortcut: Tensor | None, s_mean: Tensor | None, s_invstd: Tensor | None,
    s_weight: Tensor | None, s_bias: Tensor | None, stride: int, relu: bool,
    config: dict[str, int],
) -> Tensor:  # fmt: skip
    """relu(bn(y) + shortcut), y and shortcut dense channels_last."""
    out = new_activation(y, y.shape)
    rows, channels = rows_of(y), y.shape[1]
    if out.numel() == 0:
        return out
    _, s_channels, s_height, s_width = (y if shortcut is None else shortcut).shape
    kind = shortcut_kind(y, shortcut, s_mean, stride)
    shape = blocks(config["tile"], channels)
    grid = triton.cdiv(rows, shape["BLOCK_M"]) * triton.cdiv(channels, shape["BLOCK_C"])
    launch(
        bn_apply_kernel, grid, y,
        y, mean, invstd, weight, bias, shortcut, s_mean, s_invstd, s_weight, s_bias, out,
        rows, channels, y.shape[2], y.shape[3], s_channels, s_height, s_width,
        SHORTCUT=kind, STRIDE=stride, RELU=relu,
        **shape, ACC=accumulator(y), num_warps=config["num_warps"], writes=("out_ptr",),
        reads={"s_ptr": strided_elements(shortcut, stride)} if kind == "pad" else None,
    )  # fmt: skip
    return out
