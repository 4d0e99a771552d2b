"""How the kernels of a whole block load the operands of their matrix products."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import load_bias, load_channels, load_scale, normalise, relu, strided_rows


@triton.jit
def tile_pointers(
    ptr, row0, cols, channels, height, width, s_height, s_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Pointers [BLOCK_M, C] to columns `cols` of the rows from row0 on of a matrix [M, channels].

    With a stride a row (n, i, j) of [N, height, width] stands for pixel (n, i*STRIDE_H, j*STRIDE_W)
    of [N, s_height, s_width].
    """
    lanes = tl.arange(0, BLOCK_M)
    if STRIDE_H * STRIDE_W == 1:
        inside = lanes[:, None] * channels + cols[None, :]
        return ptr + row0.to(tl.int64) * channels + inside
    else:
        source = strided_rows(row0 + lanes, height, width, s_height, s_width, STRIDE_H, STRIDE_W)
        return ptr + (source[:, None] * channels + cols[None, :])


@triton.jit
def activate(x, keep, mean, scale, bias):
    """relu(bn(x)) of a tile in the dtype of x, zero where not `keep`: gemm.normalised_input with
    the channels' vectors at hand."""
    value = relu(normalise(x.to(tl.float32), mean, scale, bias))
    return tl.where(keep, value, 0.0).to(x.dtype)


@triton.jit
def centred(z, keep, pivot):
    """z - pivot of a tile [M, C] in fp32, zero where not `keep`."""
    return tl.where(keep, z.to(tl.float32) - pivot[None, :], 0.0)


@triton.jit
def load_centred(
    y_ptr, row0, rows, cols, channels, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, pivot_ptr,
    height, width, y_height, y_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """z - pivot of a tile of y [M', channels] at a stride, in fp32; z = y or relu(bn(y))."""
    inside = cols < channels
    keep = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None] & inside[None, :]
    pointers = tile_pointers(
        y_ptr, row0, cols, channels, height, width, y_height, y_width, STRIDE_H, STRIDE_W, BLOCK_M
    )
    z = tl.load(pointers, mask=keep, other=0.0)
    if mean_ptr is not None:
        z = activate(
            z, keep, load_channels(mean_ptr, cols, inside, tl.float32),
            load_scale(invstd_ptr, weight_ptr, cols, inside, tl.float32),
            load_bias(bias_ptr, cols, inside, tl.float32),
        )  # fmt: skip
    return centred(z, keep, load_channels(pivot_ptr, cols, inside, tl.float32))


@triton.jit
def masked(g, out):
    """The gradient g where the ReLU that gave `out` let the value through; a NaN did get through"""
    return tl.where(out.to(tl.float32) <= 0, 0.0, g.to(tl.float32)).to(g.dtype)


@triton.jit
def fold_rows(value, ROWS: tl.constexpr):
    """Sums [ROWS, C] of the rows m, m + ROWS, m + 2*ROWS, ... of a tile [M, C].

    With the ROWS that a block's threads hold side by side each thread adds up its own values.
    """
    folds: tl.constexpr = value.shape[0] // ROWS
    return tl.sum(tl.reshape(value, (folds, ROWS, value.shape[1])), 0)


# columns of an accumulator that an epilogue treats at once
PART = tl.constexpr(64)


@triton.jit
def halves(tile):
    """The left and the right half of the columns of a tile.

    An epilogue that goes through an accumulator by parts needs registers for one part only, and
    takes each part once through shared memory to where its rows are whole.
    """
    shape: tl.constexpr = (tile.shape[0], 2, tile.shape[1] // 2)
    return tl.split(tl.permute(tl.reshape(tile, shape), (0, 2, 1)))
