"""The gradient of max(relu(bn(y))) over windows: its sums per channel, and that of y."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels, load_scale, tile_of, tile_offsets
from .bn_backward import branch_gradient
from .bn_backward_reduce import masked_gradient
from .launch import accumulator, blocks, launch, new_activation, new_statistics, rows_of
from .max_pool import gathered_gradient, pool_grid, window_meta, window_origin
from .partials import row_programs, sum_partials


@triton.jit
def bn_max_pool_backward_reduce_kernel(
    dout_ptr, index_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, sum_g_ptr, sum_gx_ptr,
    rows, channels, row_programs, height, width, y_height, y_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums of g and of g * xhat, g being the gradient of bn(y).

    Taken window by window: a window's dout belongs to the one pixel that its index names, and
    counts where that pixel's ReLU was on. Reads dout and index [M, C] and y once a window (from
    cache but for the first); writes [P, C] each for P = row_programs. Accumulates in ACC.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(channels, BLOCK_C)
    program = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = cols < channels
    mean = load_channels(mean_ptr, cols, columns, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, columns, ACC)
    bias = load_bias(bias_ptr, cols, columns, ACC)
    sum_g = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sum_gx = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for tile in range(program, tl.cdiv(rows, BLOCK_M), row_programs):
        row0 = tile * BLOCK_M
        here = row0 + tl.arange(0, BLOCK_M)
        top, left, first = window_origin(
            here, height, width, y_height, y_width, STRIDE_H, STRIDE_W, PAD_H, PAD_W
        )
        origin = first[:, None] * channels + cols[None, :]
        inside = (here < rows)[:, None] & columns[None, :]
        offsets = tile_offsets(row0, cols, channels, BLOCK_M)
        g = tl.load(dout_ptr + offsets, mask=inside, other=0.0).to(ACC)
        index = tl.load(index_ptr + offsets, mask=inside, other=255).to(tl.int32)
        taken = tl.zeros((BLOCK_M, BLOCK_C), ACC)
        for a in range(KERNEL_H):  # not unrolled: nine taps at once spill
            for b in tl.static_range(KERNEL_W):
                h = top + a
                w = left + b
                within = (here < rows) & (h >= 0) & (h < y_height) & (w >= 0) & (w < y_width)
                mask = within[:, None] & columns[None, :]
                y = tl.load(y_ptr + origin + (a * y_width + b) * channels, mask=mask, other=0.0)
                taken = tl.where(index == a * KERNEL_W + b, y.to(ACC), taken)
        g = masked_gradient(g, taken, y_ptr, None, offsets, inside, mean, scale, bias, True)
        sum_g += g
        # an infinite mean must not turn the rows outside into 0 * inf
        sum_gx += tl.where(inside, g * (taken - mean[None, :]), 0.0)
    out = program.to(tl.int64) * channels + cols
    tl.store(sum_g_ptr + out, tl.sum(sum_g, 0), mask=columns)
    invstd = load_channels(invstd_ptr, cols, columns, ACC)
    tl.store(sum_gx_ptr + out, tl.sum(sum_gx, 0) * invstd, mask=columns)


@triton.jit
def bn_max_pool_backward_kernel(
    dout_ptr, index_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr, mean_gx_ptr,
    dy_ptr, rows, channels, height, width, out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dy = weight * invstd * (g - mean_g - xhat * mean_gx), g the gradient of bn(y)

    g is the sum of dout over the windows whose maximum this pixel was, where its ReLU was on;
    gathered, so nothing is added atomically. Here rows, height and width are those of y. Reads y
    [M, C], and dout and index of the windows over a pixel; writes dy [M, C]. Accumulates in ACC.
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    here = row0 + tl.arange(0, BLOCK_M)
    columns = cols < channels
    inside = (here < rows)[:, None] & columns[None, :]
    g = gathered_gradient(
        dout_ptr, index_ptr, here, cols, inside, channels, height, width, out_height, out_width,
        KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, ACC,
    )  # fmt: skip
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(ACC)
    mean = load_channels(mean_ptr, cols, columns, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, columns, ACC)
    bias = load_bias(bias_ptr, cols, columns, ACC)
    g = masked_gradient(g, y, y_ptr, None, offsets, inside, mean, scale, bias, True)
    if mean_g_ptr is not None:
        mean_g = load_channels(mean_g_ptr, cols, columns, ACC)
    else:
        mean_g = tl.zeros((BLOCK_C,), ACC)
    dy = branch_gradient(g, y, mean, scale, mean_g, invstd_ptr, mean_gx_ptr, cols, columns, ACC)
    tl.store(dy_ptr + offsets, dy.to(dy_ptr.dtype.element_ty), mask=inside)


def bn_max_pool_backward_reduce(
    dout: Tensor, index: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums [C] of g and of g * xhat, g the gradient of bn(y); all dense channels_last."""
    rows, channels = rows_of(dout), dout.shape[1]
    if dout.numel() == 0:
        return new_statistics(y, channels).zero_(), new_statistics(y, channels).zero_()
    shape = blocks(config["tile"], channels)
    across = triton.cdiv(channels, shape["BLOCK_C"])
    programs = row_programs(rows, shape["BLOCK_M"], across, config["programs"])
    partials = [new_statistics(y, programs, channels) for _ in range(2)]
    launch(
        bn_max_pool_backward_reduce_kernel, programs * across, y,
        dout, index, y, mean, invstd, weight, bias, *partials,
        rows, channels, programs, *dout.shape[2:], *y.shape[2:],
        **window_meta(kernel_size, stride, padding), **shape,
        ACC=accumulator(y), num_warps=config["num_warps"], writes=("sum_g_ptr", "sum_gx_ptr"),
    )  # fmt: skip
    sum_g, sum_gx = sum_partials(partials)
    return sum_g, sum_gx


def bn_max_pool_backward(
    dout: Tensor, index: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, mean_g: Tensor | None, mean_gx: Tensor | None,
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    config: dict[str, int],
) -> Tensor:  # fmt: skip
    """Gradient of y; without mean_gx that of a frozen BN. All activations dense channels_last."""
    dy = new_activation(y, y.shape)
    if dy.numel() == 0:
        return dy
    programs, shape = pool_grid(dy, config)
    launch(
        bn_max_pool_backward_kernel, programs, y,
        dout, index, y, mean, invstd, weight, bias, mean_g, mean_gx, dy,
        rows_of(dy), y.shape[1], *y.shape[2:], *dout.shape[2:],
        **window_meta(kernel_size, stride, padding), **shape,
        ACC=accumulator(y), num_warps=config["num_warps"], writes=("dy_ptr",),
    )  # fmt: skip
    return dy
