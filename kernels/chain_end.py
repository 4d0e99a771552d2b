"""The end of a link's input gradient where a library's convolution left it in memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import tile_of, tile_offsets
from .chain import Join, joined_gradient, masked_input_gradient
from .launch import accumulator, blocks, launch, new_activation, new_statistics, rows_of
from .partials import row_programs, sum_partials


@triton.jit
def chain_join_kernel(
    dz_ptr, x_ptr, r_ptr, r_mask_ptr, dx_ptr,
    rows, channels, height, width, r_channels, r_height, r_width,
    RS_H: tl.constexpr, RS_W: tl.constexpr, MASK_BY_X: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx = dz + residual, where MASK_BY_X only where x > 0; computes in ACC.

    Reads dz [M, C], the residual and its mask and, where MASK_BY_X, x; writes dx [M, C].
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    valid = row0 + tl.arange(0, BLOCK_M) < rows
    columns = cols < channels
    mask = valid[:, None] & columns[None, :]
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    dx = tl.load(dz_ptr + offsets, mask=mask, other=0.0).to(ACC)
    # an x that nothing uses is never loaded: the compiler drops the load
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    dx = joined_gradient(
        dx, x, r_ptr, r_mask_ptr, row0, valid, cols, columns, height, width, r_channels, r_height,
        r_width, RS_H, RS_W, MASK_BY_X, BLOCK_M,
    )  # fmt: skip
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def chain_mask_kernel(
    dz_ptr, x_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, dx_ptr, sum_g_ptr, sum_gx_ptr,
    rows, channels, row_programs,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx = dz where relu(bn(x)) was on; partial sums of dx and of dx * xhat.

    Reads dz and x [M, C]; writes dx [M, C] and the sums [P, C] each for P = row_programs.
    Accumulates in ACC.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(channels, BLOCK_C)
    program = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = cols < channels
    sum_g = tl.zeros((BLOCK_C,), ACC)
    sum_gx = tl.zeros((BLOCK_C,), ACC)
    for tile in range(program, tl.cdiv(rows, BLOCK_M), row_programs):
        row0 = tile * BLOCK_M
        mask = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None] & columns[None, :]
        offsets = tile_offsets(row0, cols, channels, BLOCK_M)
        dz = tl.load(dz_ptr + offsets, mask=mask, other=0.0).to(ACC)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
        dx, g, gx = masked_input_gradient(
            dz, x, x_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mask, cols, columns, ACC
        )
        tl.store(dx_ptr + offsets, dx, mask=mask)
        sum_g += g
        sum_gx += gx
    out = program.to(tl.int64) * channels + cols
    tl.store(sum_g_ptr + out, sum_g, mask=columns)
    tl.store(sum_gx_ptr + out, sum_gx, mask=columns)


def chain_join(dz: Tensor, x: Tensor, join: Join, config: dict[str, int]) -> Tensor:
    """The joined gradient of x from that of the convolution's input, all dense channels_last."""
    dx = new_activation(x, x.shape)
    if dx.numel() == 0:
        return dx
    rows, channels = rows_of(x), x.shape[1]
    shape = blocks(config["tile"], channels)
    grid = triton.cdiv(rows, shape["BLOCK_M"]) * triton.cdiv(channels, shape["BLOCK_C"])
    launch(
        chain_join_kernel, grid, x,
        dz, x, join.residual, join.mask, dx, rows, channels, *x.shape[2:], *join.sizes(),
        RS_H=join.stride[0], RS_W=join.stride[1], MASK_BY_X=join.mask_by_x,
        **shape, ACC=accumulator(x), num_warps=config["num_warps"],
        writes=("dx_ptr",),
        reads=join.reads(channels) | ({} if join.mask_by_x else {"x_ptr": 0}),
    )  # fmt: skip
    return dx


def chain_mask(
    dz: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, config: dict[str, int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, its column sums, those of dx * xhat) from the gradient dz of relu(bn(x))."""
    dx = new_activation(x, x.shape)
    rows, channels = rows_of(x), x.shape[1]
    if dx.numel() == 0:
        return dx, new_statistics(x, channels).zero_(), new_statistics(x, channels).zero_()
    shape = blocks(config["tile"], channels)
    across = triton.cdiv(channels, shape["BLOCK_C"])
    programs = row_programs(rows, shape["BLOCK_M"], across, config["programs"])
    partials = [new_statistics(x, programs, channels) for _ in range(2)]
    launch(
        chain_mask_kernel, programs * across, x,
        dz, x, mean, invstd, weight, bias, dx, *partials, rows, channels, programs,
        **shape, ACC=accumulator(x), num_warps=config["num_warps"],
        writes=("dx_ptr", "sum_g_ptr", "sum_gx_ptr"),
    )  # fmt: skip
    return dx, *sum_partials(partials)
