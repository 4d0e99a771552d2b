"""The 1x1 convolution as a matrix product, with the statistics of its output."""

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
from .launch import dense, launch, new_activation, rows_of
from .partials import empty_statistics, merge_statistics
from .products import pointwise_product


@triton.jit
def conv1x1_kernel(
    x_ptr, w_ptr, y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
    count_ptr, mean_ptr, m2_ptr, rows, inner, outer, height, width, x_height, x_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, STATS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y[m, n] = sum_k z[row(m), k] * w[n, k], z = x or relu(bn(x)) where pro_mean_ptr is given

    row(m) is m, or with a stride pixel (i*STRIDE_H, j*STRIDE_W) for m = (image, i, j). Accumulates
    in fp32. Reads x [M', K] and w [N, K]; writes y [M, N] and, where STATS, per row tile the count,
    mean and M2 of its columns.
    """
    row_tile, col_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outer, BLOCK_N), GROUP
    )
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = pointwise_product(
        x_ptr, w_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
        row_tile * BLOCK_M, cols, rows, inner, outer, height, width, x_height, x_width,
        STRIDE_H, STRIDE_W, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
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
    """(y, mean, biased variance) of a 1x1 convolution of a dense channels_last x.

    Args:
        weight: [C_out, C_in, 1, 1]. A 1x1 kernel has no padding here and dilation is without
            effect; both are taken so that every convolution is called alike.
        pro_mean: with pro_invstd, pro_weight and pro_bias [C_in] the BN whose relu(bn(x)) is
            convolved instead of x.
        stats: False gives mean and variance as empty [0].
        tf32: multiply fp32 in TF32.
    """
    images, inner, x_height, x_width = x.shape
    outer = weight.shape[0]
    height, width = ((extent - 1) // s + 1 for extent, s in zip(x.shape[2:], stride, strict=True))
    y = new_activation(x, (images, outer, height, width))
    if y.numel() == 0:
        return y, *(empty_statistics(y) if stats else no_statistics(y))
    rows = rows_of(y)
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    partials = new_partials(y, tiles, stats)
    launch(
        conv1x1_kernel, tiles * triton.cdiv(outer, config["BLOCK_N"]), y,
        x, dense(weight), y, pro_mean, pro_invstd, pro_weight, pro_bias, *partials,
        rows, inner, outer, height, width, x_height, x_width,
        STRIDE_H=stride[0], STRIDE_W=stride[1], STATS=stats,
        PRECISION="tf32" if tf32 else "ieee", GROUP=GROUP_TILES, **config,
        writes=WRITES,
        reads={"x_ptr": rows * inner}, flops=2 * rows * outer * inner,
    )  # fmt: skip
    return y, *(merge_statistics(*partials) if stats else no_statistics(y))
