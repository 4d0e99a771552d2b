"""The per-channel sums that the gradient of a batch normalisation needs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels, load_scale, normalise
from .launch import accumulator, blocks, launch, new_statistics, rows_of
from .partials import row_programs, sum_partials


@triton.jit
def masked_gradient(g, y, y_ptr, out_ptr, offsets, mask, mean, scale, bias, RELU: tl.constexpr):
    """The gradient g of a join where its ReLU let the value through.

    The mask is that of the stored output: read where out_ptr is given, else recomputed from y by
    the forward's arithmetic and rounded to the dtype of y as the output was.
    """
    if RELU:
        if out_ptr is not None:
            out = tl.load(out_ptr + offsets, mask=mask, other=0.0)
        else:
            out = normalise(y, mean, scale, bias).to(y_ptr.dtype.element_ty)
        g = tl.where(out.to(g.dtype) <= 0, 0.0, g)
    return g


@triton.jit
def bn_backward_reduce_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    s_ptr, s_mean_ptr, s_invstd_ptr, sum_g_ptr, sum_gx_ptr, sum_gx_s_ptr,
    rows, channels, row_programs,
    RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g = dout * (out > 0); partial sums of g, of g * xhat and of g * xhat_s.

    xhat = (y - mean) * invstd, xhat_s the same of s where s_ptr is given. Reads dout, y and, where
    given, out and s [M, C]; writes [P, C] each for P = row_programs. Accumulates in ACC.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(channels, BLOCK_C)
    program = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = cols < channels
    lanes = tl.arange(0, BLOCK_M)
    inside = lanes[:, None] * channels + cols[None, :]
    mean = load_channels(mean_ptr, cols, columns, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, columns, ACC)
    bias = load_bias(bias_ptr, cols, columns, ACC)
    if s_ptr is not None:
        s_mean = load_channels(s_mean_ptr, cols, columns, ACC)
    sum_g = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sum_gx = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    sum_gx_s = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for tile in range(program, tl.cdiv(rows, BLOCK_M), row_programs):
        row0 = tile * BLOCK_M
        mask = (row0 + lanes < rows)[:, None] & columns[None, :]
        offsets = row0.to(tl.int64) * channels + inside
        y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.load(dout_ptr + offsets, mask=mask, other=0.0).to(ACC)
        g = masked_gradient(g, y, y_ptr, out_ptr, offsets, mask, mean, scale, bias, RELU)
        sum_g += g
        # an infinite mean must not turn the rows outside into 0 * inf
        sum_gx += tl.where(mask, g * (y - mean[None, :]), 0.0)
        if s_ptr is not None:
            s = tl.load(s_ptr + offsets, mask=mask, other=0.0).to(ACC)
            sum_gx_s += tl.where(mask, g * (s - s_mean[None, :]), 0.0)
    out = program.to(tl.int64) * channels + cols
    tl.store(sum_g_ptr + out, tl.sum(sum_g, 0), mask=columns)
    invstd = load_channels(invstd_ptr, cols, columns, ACC)
    tl.store(sum_gx_ptr + out, tl.sum(sum_gx, 0) * invstd, mask=columns)
    if s_ptr is not None:
        s_invstd = load_channels(s_invstd_ptr, cols, columns, ACC)
        tl.store(sum_gx_s_ptr + out, tl.sum(sum_gx_s, 0) * s_invstd, mask=columns)


def bn_backward_reduce(
    dout: Tensor, out: Tensor | None, y: Tensor, mean: Tensor, invstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, shortcut: Tensor | None, s_mean: Tensor | None,
    s_invstd: Tensor | None, relu: bool, config: dict[str, int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums of g, g * xhat and g * xhat_s [C] (the last [0] without a second branch)."""
    rows, channels = rows_of(y), y.shape[1]
    branches = 2 if s_mean is None else 3
    nothing = [new_statistics(y, 0) for _ in range(3 - branches)]
    if rows == 0 or channels == 0:
        return *[new_statistics(y, channels).zero_() for _ in range(branches)], *nothing
    shape = blocks(config["tile"], channels)
    across = triton.cdiv(channels, shape["BLOCK_C"])
    programs = row_programs(rows, shape["BLOCK_M"], across, config["programs"])
    partials = [new_statistics(y, programs, channels) for _ in range(branches)]
    launch(
        bn_backward_reduce_kernel, programs * across, y,
        dout, out, y, mean, invstd, weight, bias,
        None if s_mean is None else shortcut, s_mean, s_invstd,
        *partials, *[None] * (3 - branches), rows, channels, programs,
        RELU=relu, **shape, ACC=accumulator(y), num_warps=config["num_warps"],
        writes=("sum_g_ptr", "sum_gx_ptr", "sum_gx_s_ptr"),
    )  # fmt: skip
    return *sum_partials(partials), *nothing
