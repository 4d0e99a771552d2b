"""What the convolution kernels share: the order of their tiles, the prologue, the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels, load_scale, normalise, relu, tile_offsets
from .launch import new_statistics

# row tiles that go through all column tiles before the next ones: their inputs stay in L2
GROUP = 8
# arguments of a convolution kernel that it writes
WRITES = ("y_ptr", "count_ptr", "mean_ptr", "m2_ptr")


@triton.jit
def grouped_tile(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """(row tile, column tile) of program `pid`, rows first within groups of GROUP row tiles."""
    group = pid // (GROUP * tiles_n)
    within = pid % (GROUP * tiles_n)
    high = tl.minimum(tiles_m - group * GROUP, GROUP)
    return group * GROUP + within % high, within // high


@triton.jit
def normalised_input(x, keep, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, cols, inside):
    """relu(bn(x)) of a tile [M, K] in the dtype of x, zero where not `keep`.

    The zeros of a convolution's padding come after the normalisation, so they stay zeros.
    """
    mean = load_channels(mean_ptr, cols, inside, tl.float32)
    scale = load_scale(invstd_ptr, weight_ptr, cols, inside, tl.float32)
    bias = load_bias(bias_ptr, cols, inside, tl.float32)
    value = relu(normalise(x.to(tl.float32), mean, scale, bias))
    return tl.where(keep, value, 0.0).to(x.dtype)


@triton.jit
def store_output(
    acc, y_ptr, count_ptr, mean_ptr, m2_ptr, row_tile, cols, rows, channels,
    STATS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write a tile of y and, where STATS, its count, mean and M2 as partial `row_tile`.

    The statistics are those of y as it is stored, after rounding. The tile is in registers, so the
    mean is subtracted before anything is squared.
    """
    row0 = row_tile * BLOCK_M
    valid = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None]
    inside = cols < channels
    y = acc.to(y_ptr.dtype.element_ty)
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    tl.store(y_ptr + offsets, y, mask=valid & inside[None, :])
    if STATS:
        value = y.to(tl.float32)
        count = tl.minimum(rows - row0, BLOCK_M).to(tl.float32)
        mean = tl.sum(tl.where(valid, value, 0.0), 0) / count
        from_mean = tl.where(valid, value - mean[None, :], 0.0)
        m2 = tl.sum(from_mean * from_mean, 0)
        out = row_tile.to(tl.int64) * channels + cols
        tl.store(mean_ptr + out, mean, mask=inside)
        tl.store(m2_ptr + out, m2, mask=inside)
        # every column tile of these rows writes the same number
        tl.store(count_ptr + row_tile, count)


def new_partials(y: Tensor, tiles: int, stats: bool) -> list[Tensor] | list[None]:
    """Memory for count [P], mean and M2 [P, C] of P row tiles, or three None."""
    if not stats:
        return [None, None, None]
    channels = y.shape[1]
    return [
        new_statistics(y, tiles),
        new_statistics(y, tiles, channels),
        new_statistics(y, tiles, channels),
    ]


def no_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """The two empty vectors [0] that stand for statistics nobody asked for."""
    return new_statistics(y, 0), new_statistics(y, 0)
