"""The stem's max(relu(bn(y))) over windows, which never writes what it pools."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import (
    load_bias,
    load_channels,
    load_scale,
    normalise,
    relu,
    tile_of,
    tile_offsets,
)
from .launch import accumulator, launch, rows_of
from .max_pool import new_pooled, pool_grid, window_meta, window_origin


@triton.jit
def bn_max_pool_kernel(
    y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, out_ptr, index_ptr,
    rows, channels, height, width, y_height, y_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = the largest relu(bn(y)) of each window, index = its place a * KERNEL_W + b there.

    Each value is rounded to the dtype of y before it is compared, as if it had been stored. As in
    torch the first of equals wins, a NaN beats everything, and padding takes no part. Reads y once
    a window (from cache but for the first); writes out [M, C] and index [M, C] as bytes.
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    here = row0 + tl.arange(0, BLOCK_M)
    columns = cols < channels
    mean = load_channels(mean_ptr, cols, columns, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, columns, ACC)
    bias = load_bias(bias_ptr, cols, columns, ACC)
    top, left, first = window_origin(
        here, height, width, y_height, y_width, STRIDE_H, STRIDE_W, PAD_H, PAD_W
    )
    origin = first[:, None] * channels + cols[None, :]
    best = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    place = tl.full((BLOCK_M, BLOCK_C), -1, tl.int32)
    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(KERNEL_W):
            h = top + a
            w = left + b
            within = (here < rows) & (h >= 0) & (h < y_height) & (w >= 0) & (w < y_width)
            mask = within[:, None] & columns[None, :]
            y = tl.load(y_ptr + origin + (a * y_width + b) * channels, mask=mask, other=0.0)
            z = relu(normalise(y.to(ACC), mean, scale, bias)).to(y.dtype).to(ACC)
            larger = mask & ((z > best) | (z != z) | (place < 0))
            best = tl.where(larger, z, best)
            place = tl.where(larger, a * KERNEL_W + b, place)
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    inside = (here < rows)[:, None] & columns[None, :]
    tl.store(out_ptr + offsets, best.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(index_ptr + offsets, place.to(tl.uint8), mask=inside)


def bn_max_pool(
    y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(maxima of relu(bn(y)), their places as uint8) of a dense channels_last y [N, C, H, W]."""
    out, index = new_pooled(y, kernel_size, stride, padding)
    if out.numel() == 0:
        return out, index
    programs, shape = pool_grid(out, config)
    launch(
        bn_max_pool_kernel, programs, y,
        y, mean, invstd, weight, bias, out, index,
        rows_of(out), y.shape[1], *out.shape[2:], *y.shape[2:],
        **window_meta(kernel_size, stride, padding), **shape,
        ACC=accumulator(y), num_warps=config["num_warps"], writes=("out_ptr", "index_ptr"),
    )  # fmt: skip
    return out, index
