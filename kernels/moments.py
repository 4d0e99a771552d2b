"""First and second moments of what enters a 1x1 convolution: its output's statistics follow."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, new_statistics, rows_of
from .operands import fold_rows, load_centred
from .split_sums import fold_count, split_count, split_sums, upper_area


@triton.jit
def triangle_tile(pair, blocks):
    """(i, j), i <= j, of tile `pair` of the upper triangle of blocks x blocks tiles.

    Row r of the triangle and row blocks - 1 - r have blocks + 1 tiles together.
    """
    low = pair // (blocks + 1)
    place = pair % (blocks + 1)
    own = blocks - low
    upper = place < own
    i = tl.where(upper, low, own - 1)
    return i, tl.where(upper, low + place, place - 1)


@triton.jit
def moments_kernel(
    y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, pivot_ptr, parts_ptr,
    rows, channels, splits, height, width, y_height, y_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PRECISION: tl.constexpr,
    ONE_TILE: tl.constexpr, FOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """parts[p, i, j] = sum_m d[m, i] * d[m, j] for i <= j, parts[p, K, j] = sum_m d[m, j]

    d = z - pivot, z = y or relu(bn(y)) where mean_ptr is given; m goes over every `splits`-th row
    tile from the p-th on. The products are of d in the dtype of y, the sums of d in fp32;
    accumulates in fp32. Reads y [M, K] once a column tile; writes the tiles of the upper triangle
    of parts [P, K + 1, K]. ONE_TILE: K <= BLOCK_K.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_K)
    pairs = blocks * (blocks + 1) // 2
    # the programs of one split are neighbours: they share its rows
    split = pid // pairs
    i, j = triangle_tile(pid % pairs, blocks)
    lanes = tl.arange(0, BLOCK_K)
    left = i * BLOCK_K + lanes
    right = j * BLOCK_K + lanes
    acc = tl.zeros((BLOCK_K, BLOCK_K), tl.float32)
    total = tl.zeros((FOLD, BLOCK_K), tl.float32)
    for tile in range(split, tl.cdiv(rows, BLOCK_M), splits):
        row0 = tile * BLOCK_M
        d = load_centred(
            y_ptr, row0, rows, right, channels, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
            pivot_ptr, height, width, y_height, y_width, STRIDE_H, STRIDE_W, BLOCK_M,
        )  # fmt: skip
        total += fold_rows(d, FOLD)
        b = d.to(y_ptr.dtype.element_ty)
        if ONE_TILE:
            a = b
        else:
            a = load_centred(
                y_ptr, row0, rows, left, channels, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
                pivot_ptr, height, width, y_height, y_width, STRIDE_H, STRIDE_W, BLOCK_M,
            ).to(y_ptr.dtype.element_ty)  # fmt: skip
        acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
    part = parts_ptr + split.to(tl.int64) * ((channels + 1) * channels)
    inside = (left < channels)[:, None] & (right < channels)[None, :]
    tl.store(part + left[:, None] * channels + right[None, :], acc, mask=inside)
    if i == j:
        tl.store(part + channels * channels + right, tl.sum(total, 0), mask=right < channels)


def moments(
    y: Tensor, mean: Tensor | None, invstd: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, pivot: Tensor, stride: Sequence[int], tf32: bool, config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(s [K], gram [K, K]) of z - pivot over the rows of a dense channels_last y, at a stride.

    Args:
        mean: with invstd, weight and bias [K] the BN of z = relu(bn(y)); None: z is y.
        pivot: [K] in fp32.
        tf32: multiply fp32 in TF32.
    """
    images, channels, y_height, y_width = y.shape
    height, width = ((extent - 1) // s + 1 for extent, s in zip(y.shape[2:], stride, strict=True))
    if y.numel() == 0:
        return (
            new_statistics(y, channels).zero_(),
            new_statistics(y, channels, channels).zero_(),
        )
    rows_of(y)
    rows = images * height * width
    config = dict(config)
    programs, block_k = config.pop("programs"), config["BLOCK_K"]
    blocks = triton.cdiv(channels, block_k)
    pairs = blocks * (blocks + 1) // 2
    splits = split_count(rows, config["BLOCK_M"], pairs, programs)
    parts = new_statistics(y, splits, channels + 1, channels)
    area = upper_area(channels, block_k)
    launch(
        moments_kernel, splits * pairs, y,
        y, mean, invstd, weight, bias, pivot, parts,
        rows, channels, splits, height, width, y_height, y_width,
        STRIDE_H=stride[0], STRIDE_W=stride[1], PRECISION="tf32" if tf32 else "ieee",
        ONE_TILE=blocks == 1,
        FOLD=fold_count(config["BLOCK_M"], block_k, config["num_warps"], y.element_size()),
        **config,
        writes={"parts_ptr": splits * (area + channels)}, reads={"y_ptr": rows * channels},
        flops=2 * rows * area,
    )  # fmt: skip
    gram, s = split_sums(parts, symmetric=True)
    return s, gram
