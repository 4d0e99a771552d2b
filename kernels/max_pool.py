"""Max pooling that remembers, in one byte, where in its window each maximum was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import tile_of, tile_offsets
from .launch import accumulator, blocks, launch, new_activation, rows_of


@triton.jit
def max_pool_kernel(
    x_ptr, out_ptr, index_ptr, rows, channels, height, width, x_height, x_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = the largest pixel of each window, index = its place a * KERNEL_W + b there.

    As in torch the first of equals wins, a NaN beats everything, and padding takes no part. Reads x
    once a window; writes out [M, C] and index [M, C] as bytes.
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    here = row0 + tl.arange(0, BLOCK_M)
    columns = (cols < channels)[None, :]
    top = ((here // width) % height) * STRIDE_H - PAD_H
    left = (here % width) * STRIDE_W - PAD_W
    image = (here // (height * width)).to(tl.int64)
    origin = ((image * x_height + top) * x_width + left)[:, None] * channels + cols[None, :]
    # by way of fp32: Triton 3.6's interpreter cannot fill a bf16 tile
    best = tl.full((BLOCK_M, BLOCK_C), float("-inf"), tl.float32).to(x_ptr.dtype.element_ty)
    place = tl.full((BLOCK_M, BLOCK_C), -1, tl.int32)
    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(KERNEL_W):
            h = top + a
            w = left + b
            within = (here < rows) & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
            mask = within[:, None] & columns
            x = tl.load(x_ptr + origin + (a * x_width + b) * channels, mask=mask, other=0.0)
            # compared in fp32, which holds every 16-bit value
            v = x.to(tl.float32) if x.dtype.primitive_bitwidth < 32 else x
            larger = (v > best.to(v.dtype)) | (v != v) | (place < 0)
            best = tl.where(mask & larger, x, best)
            place = tl.where(mask & larger, a * KERNEL_W + b, place)
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    inside = (here < rows)[:, None] & columns
    tl.store(out_ptr + offsets, best, mask=inside)
    tl.store(index_ptr + offsets, place.to(tl.uint8), mask=inside)


@triton.jit
def max_pool_backward_kernel(
    dout_ptr, index_ptr, dx_ptr, rows, channels, height, width, out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx = sum of dout over the windows whose maximum this pixel was.

    Gathered, so nothing is added atomically. Here rows, height and width are those of dx. Reads
    dout and index of the windows over a pixel; writes dx [M, C]. Accumulates in ACC.
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    here = row0 + tl.arange(0, BLOCK_M)
    inside = (here < rows)[:, None] & (cols < channels)[None, :]
    down = (here // width) % height + PAD_H
    across = here % width + PAD_W
    image = (here // (height * width)).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for a in range(KERNEL_H):  # not unrolled: the offsets of nine windows at once spill
        for b in tl.static_range(KERNEL_W):
            h = down - a
            w = across - b
            i = h // STRIDE_H
            j = w // STRIDE_W
            meets = (h >= 0) & (w >= 0) & (h % STRIDE_H == 0) & (w % STRIDE_W == 0)
            mask = (meets & (i < out_height) & (j < out_width))[:, None] & inside
            window = (image * out_height + i) * out_width + j
            offsets = window[:, None] * channels + cols[None, :]
            index = tl.load(index_ptr + offsets, mask=mask, other=255).to(tl.int32)
            # a mask by element would split the 16-byte loads
            g = tl.load(dout_ptr + offsets, mask=mask, other=0.0).to(ACC)
            total += tl.where(index == a * KERNEL_W + b, g, 0.0)
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    tl.store(dx_ptr + offsets, total.to(dx_ptr.dtype.element_ty), mask=inside)


def _launch(kernel, result: Tensor, other: Tensor, tensors, window, config, **meta) -> None:
    rows, channels = rows_of(result), result.shape[1]
    if result.numel() == 0:
        return
    shape = blocks(config["tile"], channels)
    grid = triton.cdiv(rows, shape["BLOCK_M"]) * triton.cdiv(channels, shape["BLOCK_C"])
    kernel_size, stride, padding = window
    launch(
        kernel, grid, result, *tensors, rows, channels, *result.shape[2:], *other.shape[2:],
        KERNEL_H=kernel_size[0], KERNEL_W=kernel_size[1], STRIDE_H=stride[0], STRIDE_W=stride[1],
        PAD_H=padding[0], PAD_W=padding[1], **shape, num_warps=config["num_warps"], **meta,
    )  # fmt: skip


def max_pool(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(maxima, their places as uint8) of a dense channels_last x [N, C, H, W]."""
    spatial = [
        (x.shape[2 + i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in range(2)
    ]
    out = new_activation(x, (*x.shape[:2], *spatial))
    index = torch.empty(
        out.shape, dtype=torch.uint8, device=x.device, memory_format=torch.channels_last
    )
    _launch(
        max_pool_kernel, out, x, (x, out, index), (kernel_size, stride, padding), config,
        writes=("out_ptr", "index_ptr"),
    )  # fmt: skip
    return out, index


def max_pool_backward(
    dout: Tensor, index: Tensor, size: Sequence[int], kernel_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], config: dict[str, int],
) -> Tensor:  # fmt: skip
    """Gradient of `max_pool` for an x of sizes `size`; dout and index dense channels_last."""
    dx = new_activation(dout, size)
    window = (kernel_size, stride, padding)
    _launch(
        max_pool_backward_kernel, dx, dout, (dout, index, dx), window, config,
        ACC=accumulator(dout), writes=("dx_ptr",),
    )  # fmt: skip
    return dx
