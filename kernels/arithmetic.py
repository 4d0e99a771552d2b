"""The arithmetic every kernel shares, so that the forward and the backward round alike."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_channels(ptr, cols, mask, ACC: tl.constexpr):
    """A per-channel vector [BLOCK_C] in the accumulator's dtype; 0 outside the mask."""
    return tl.load(ptr + cols, mask=mask, other=0.0).to(ACC)


@triton.jit
def load_scale(invstd_ptr, weight_ptr, cols, mask, ACC: tl.constexpr):
    """invstd * weight [BLOCK_C]; weight_ptr None is a weight of one."""
    scale = load_channels(invstd_ptr, cols, mask, ACC)
    if weight_ptr is not None:
        scale = scale * load_channels(weight_ptr, cols, mask, ACC)
    return scale


@triton.jit
def load_bias(bias_ptr, cols, mask, ACC: tl.constexpr):
    """bias [BLOCK_C]; bias_ptr None is a bias of zero."""
    if bias_ptr is not None:
        return load_channels(bias_ptr, cols, mask, ACC)
    else:
        return tl.zeros(cols.shape, ACC)


@triton.jit
def normalise(y, mean, scale, bias):
    """(y - mean) * scale + bias of a tile [M, C] and vectors [C].

    The fma is explicit: whether a compiler contracts the product and the sum must not differ
    between the kernel that applies a ReLU and the one that recomputes its mask.
    """
    return tl.fma(y - mean[None, :], tl.broadcast_to(scale[None, :], y.shape),
                  tl.broadcast_to(bias[None, :], y.shape))  # fmt: skip


@triton.jit
def relu(value):
    """max(value, 0) that lets NaN through, as torch does."""
    return tl.where(value <= 0, 0.0, value)


@triton.jit
def tile_of(pid, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """First row and columns of tile `pid`; neighbours in the grid share their rows."""
    across = tl.cdiv(channels, BLOCK_C)
    row0 = (pid // across) * BLOCK_M
    return row0, (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def tile_offsets(row0, cols, channels, BLOCK_M: tl.constexpr):
    """Element offsets [BLOCK_M, BLOCK_C] of a tile of a dense [M, C] matrix.

    The first row is widened before it meets the stride; inside a tile 32 bits are enough.
    """
    inside = tl.arange(0, BLOCK_M)[:, None] * channels + cols[None, :]
    return row0.to(tl.int64) * channels + inside


@triton.jit
def strided_rows(
    rows, height, width, s_height, s_width, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr
):
    """Row of pixel (n, i*STRIDE_H, j*STRIDE_W) in the source, for rows (n, i, j) of the result.

    Result [N, height, width], source [N, s_height, s_width]; 64-bit.
    """
    image = rows // (height * width)
    i = (rows // width) % height
    j = rows % width
    return (image.to(tl.int64) * s_height + i * STRIDE_H) * s_width + j * STRIDE_W
