"""The product that a wide 1x1 convolution's weight gradient and its BN's gradients follow from."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, new_statistics, rows_of
from .operands import fold_rows, load_centred, masked
from .split_sums import fold_count, split_count, split_sums


@triton.jit
def expand_backward_weight_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, pivot_ptr, parts_ptr,
    rows, inner, outer, splits, height, width, y_height, y_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PRECISION: tl.constexpr, FOLD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """parts[p, k, n] = sum_m d[m, k] * g[m, n], parts[p, K, n] = sum_m g[m, n]

    g = dout, where out_ptr is given only where !(out <= 0). d = z - pivot in the dtype of y, z = y
    or relu(bn(y)) where mean_ptr is given, at a stride; m goes over every `splits`-th row tile from
    the p-th on. Accumulates in fp32. Reads dout and out [M, N] once a block of K, and y [M', K]
    once a block of N (from cache but for the first); writes parts [P, K + 1, N].
    """
    pid = tl.program_id(0)
    across = tl.cdiv(outer, BLOCK_N)
    tiles = tl.cdiv(inner, BLOCK_K) * across
    # the programs of one split are neighbours: they share its rows
    split = pid // tiles
    row_block = (pid % tiles) // across
    ks = row_block * BLOCK_K + tl.arange(0, BLOCK_K)
    cols = ((pid % tiles) % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = cols < outer
    lanes = tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    total = tl.zeros((FOLD, BLOCK_N), tl.float32)
    for tile in range(split, tl.cdiv(rows, BLOCK_M), splits):
        row0 = tile * BLOCK_M
        keep = (row0 + lanes < rows)[:, None] & columns[None, :]
        inside = lanes[:, None] * outer + cols[None, :]
        first = row0.to(tl.int64) * outer
        g = tl.load(dout_ptr + first + inside, mask=keep, other=0.0)
        if out_ptr is not None:
            g = masked(g, tl.load(out_ptr + first + inside, mask=keep, other=0.0))
        total += fold_rows(g.to(tl.float32), FOLD)
        d = load_centred(
            y_ptr, row0, rows, ks, inner, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, pivot_ptr,
            height, width, y_height, y_width, STRIDE_H, STRIDE_W, BLOCK_M,
        ).to(y_ptr.dtype.element_ty)  # fmt: skip
        acc = tl.dot(tl.trans(d), g, acc, input_precision=PRECISION)
    part = parts_ptr + split.to(tl.int64) * ((inner + 1) * outer)
    mask = (ks < inner)[:, None] & columns[None, :]
    tl.store(part + ks[:, None] * outer + cols[None, :], acc, mask=mask)
    if row_block == 0:
        tl.store(part + inner * outer + cols, tl.sum(total, 0), mask=columns)


def expand_backward_weight(
    dout: Tensor, out: Tensor | None, y: Tensor, mean: Tensor | None, invstd: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, pivot: Tensor, stride: Sequence[int], tf32: bool,
    config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(product [K, N] of z - pivot and g, sum of g [N]) over the rows of dense activations.

    Args:
        dout: gradient of the block's output [B, N, H, W]; g is dout where `out` is given only where
            out let it through.
        y: [B, K, H', W'], read at a stride.
        mean: with invstd, weight and bias [K] the BN of z = relu(bn(y)); None: z is y.
        pivot: [K] in fp32.
        tf32: multiply fp32 in TF32.
    """
    inner, y_height, y_width = y.shape[1:]
    outer, height, width = dout.shape[1:]
    if dout.numel() == 0 or y.numel() == 0:
        return new_statistics(y, inner, outer).zero_(), new_statistics(y, outer).zero_()
    rows_of(y)
    rows = rows_of(dout)
    config = dict(config)
    programs = config.pop("programs")
    tiles = triton.cdiv(inner, config["BLOCK_K"]) * triton.cdiv(outer, config["BLOCK_N"])
    splits = split_count(rows, config["BLOCK_M"], tiles, programs)
    parts = new_statistics(y, splits, inner + 1, outer)
    fold = fold_count(
        config["BLOCK_M"], config["BLOCK_N"], config["num_warps"], dout.element_size()
    )
    launch(
        expand_backward_weight_kernel, splits * tiles, y,
        dout, out, y, mean, invstd, weight, bias, pivot, parts,
        rows, inner, outer, splits, height, width, y_height, y_width,
        STRIDE_H=stride[0], STRIDE_W=stride[1], PRECISION="tf32" if tf32 else "ieee", FOLD=fold,
        **config,
        writes=("parts_ptr",), reads={"y_ptr": rows * inner}, flops=2 * rows * inner * outer,
    )  # fmt: skip
    return split_sums(parts, symmetric=False)
