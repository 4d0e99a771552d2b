"""The stem's max(relu(bn(y))) over windows, which never writes what it pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
from .launch import accumulator, blocks, launch, new_activation, rows_of


@triton.jit
def window_origin(here, height, width, s_height, s_width, STRIDE_H: tl.constexpr,
                  STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr):  # fmt: skip
    """(top, left, row of that pixel in the source) of the windows over [N, height, width].

    The first pixel may lie outside the image; its row number is 64-bit.
    """
    top = ((here // width) % height) * STRIDE_H - PAD_H
    left = (here % width) * STRIDE_W - PAD_W
    image = (here // (height * width)).to(tl.int64)
    return top, left, (image * s_height + top) * s_width + left


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


def pool_grid(result: Tensor, config: dict[str, int]) -> tuple[int, dict[str, int]]:
    """(programs, block sizes) of a launch that gives each program a tile of `result`."""
    shape = blocks(config["tile"], result.shape[1])
    programs = triton.cdiv(rows_of(result), shape["BLOCK_M"])
    return programs * triton.cdiv(result.shape[1], shape["BLOCK_C"]), shape


def window_meta(
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> dict[str, int]:
    """A pooling window as the kernels' compile-time arguments."""
    return {
        "KERNEL_H": kernel_size[0], "KERNEL_W": kernel_size[1], "STRIDE_H": stride[0],
        "STRIDE_W": stride[1], "PAD_H": padding[0], "PAD_W": padding[1],
    }  # fmt: skip


def bn_max_pool(
    y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(maxima of relu(bn(y)), their places as uint8) of a dense channels_last y [N, C, H, W]."""
    spatial = [
        (y.shape[2 + i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in range(2)
    ]
    out = new_activation(y, (*y.shape[:2], *spatial))
    index = torch.empty(
        out.shape, dtype=torch.uint8, device=y.device, memory_format=torch.channels_last
    )
    if out.numel() == 0:
        return out, index
    programs, shape = pool_grid(out, config)
    launch(
        bn_max_pool_kernel, programs, y,
        y, mean, invstd, weight, bias, out, index,
        rows_of(out), y.shape[1], *spatial, *y.shape[2:],
        **window_meta(kernel_size, stride, padding), **shape,
        ACC=accumulator(y), num_warps=config["num_warps"], writes=("out_ptr", "index_ptr"),
    )  # fmt: skip
    return out, index
