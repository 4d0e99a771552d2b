"""A convolution of any kernel size as an implicit matrix product, with its output's statistics."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .gemm import GROUP as GROUP_TILES
from .gemm import (
    WRITES,
    grouped_tile,
    new_partials,
    no_statistics,
    store_output,
)
from .launch import dense, launch, new_convolved, rows_of
from .partials import empty_statistics, merge_statistics
from .products import implicit_product


@triton.jit
def conv3x3_kernel(
    x_ptr, w_ptr, y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
    count_ptr, mean_ptr, m2_ptr, rows, inner, outer, height, width, x_height, x_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    STATS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y[(b,i,j), n] = sum over a, c, k of z[b, i*S - P + a*D, j*S - P + c*D, k] * w[n, a, c, k]

    z is x, or relu(bn(x)) where pro_mean_ptr is given; outside the image it is zero. One loop goes
    over taps (a, c) and blocks of input channels k. Accumulates in fp32. Reads x [M', K] once a
    tap (from cache but for the first) and w [N, KERNEL_H, KERNEL_W, K]; writes y [M, N] and, where
    STATS, per row tile the count, mean and M2 of its columns.
    """
    row_tile, col_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outer, BLOCK_N), GROUP
    )
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = implicit_product(
        x_ptr, w_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
        row_tile * BLOCK_M, cols, rows, inner, outer, height, width, x_height, x_width,
        KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, PRECISION,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    store_output(
        acc, y_ptr, count_ptr, mean_ptr, m2_ptr, row_tile, cols, rows, outer, STATS, BLOCK_M
    )


def convolution(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], pro_mean: Tensor | None, pro_invstd: Tensor | None,
    pro_weight: Tensor | None, pro_bias: Tensor | None, stats: bool, tf32: bool,
    config: dict[str, int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, mean, biased variance) of a convolution of a dense channels_last x, without groups.

    Args:
        weight: [C_out, C_in, KH, KW].
        stride, padding, dilation: of height and width.
        pro_mean: with pro_invstd, pro_weight and pro_bias [C_in] the BN whose relu(bn(x)) is
            convolved instead of x, padded with zeros after it.
        stats: False gives mean and variance as empty [0].
        tf32: multiply fp32 in TF32.
    """
    _, inner, x_height, x_width = x.shape
    outer, _, kernel_h, kernel_w = weight.shape
    y = new_convolved(x, weight, stride, padding, dilation)
    height, width = y.shape[2:]
    if y.numel() == 0:
        return y, *(empty_statistics(y) if stats else no_statistics(y))
    rows = rows_of(y)
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    partials = new_partials(y, tiles, stats)
    launch(
        conv3x3_kernel, tiles * triton.cdiv(outer, config["BLOCK_N"]), y,
        x, dense(weight), y, pro_mean, pro_invstd, pro_weight, pro_bias, *partials,
        rows, inner, outer, height, width, x_height, x_width,
        KERNEL_H=kernel_h, KERNEL_W=kernel_w, STRIDE_H=stride[0], STRIDE_W=stride[1],
        PAD_H=padding[0], PAD_W=padding[1], DILATION_H=dilation[0], DILATION_W=dilation[1],
        STATS=stats, PRECISION="tf32" if tf32 else "ieee", GROUP=GROUP_TILES, **config,
        writes=WRITES, flops=2 * rows * outer * inner * kernel_h * kernel_w,
    )  # fmt: skip
    return y, *(merge_statistics(*partials) if stats else no_statistics(y))
