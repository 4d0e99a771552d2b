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
    top, left, first = window_origin(
        here, height, width, x_height, x_width, STRIDE_H, STRIDE_W, PAD_H, PAD_W
    )
    origin = first[:, None] * channels + cols[None, :]
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
def gathered_gradient(
    dout_ptr, index_ptr, here, cols, inside, channels, height, width, out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum of dout [M, C] over the windows whose maximum the pixels `here` were, a tile.

    height and width are those of the pixels' image. Gathered, so nothing is added atomically.
    """
    down = (here // width) % height + PAD_H
    across = here % width + PAD_W
    image = (here // (height * width)).to(tl.int64)
    total = tl.zeros(inside.shape, ACC)
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
    return total


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
    total = gathered_gradient(
        dout_ptr, index_ptr, here, cols, inside, channels, height, width, out_height, out_width,
        KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, ACC,
    )  # fmt: skip
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    tl.store(dx_ptr + offsets, total.to(dx_ptr.dtype.element_ty), mask=inside)


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


def new_pooled(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Uninitialised output and index of a pooling of x [N, C, H, W]."""
    spatial = [
        (x.shape[2 + i] + 2 * padding[i] - kernel_size[i]) // stride[i] + 1 for i in range(2)
    ]
    out = new_activation(x, (*x.shape[:2], *spatial))
    index = torch.empty(
        out.shape, dtype=torch.uint8, device=x.device, memory_format=torch.channels_last
    )
    return out, index


def _launch(kernel, result: Tensor, other: Tensor, tensors, window, config, **meta) -> None:
    if result.numel() == 0:
        return
    programs, shape = pool_grid(result, config)
    launch(
        kernel, programs, result, *tensors,
        rows_of(result), result.shape[1], *result.shape[2:], *other.shape[2:],
        **window_meta(*window), **shape, num_warps=config["num_warps"], **meta,
    )  # fmt: skip


def max_pool(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(maxima, their places as uint8) of a dense channels_last x [N, C, H, W]."""
    out, index = new_pooled(x, kernel_size, stride, padding)
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
