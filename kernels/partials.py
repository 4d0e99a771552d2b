"""Merging what each program found into one result per channel, in a fixed order.

Programs write partial results [programs, C]; nothing is added atomically, so that a launch
repeated gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import accumulator, launch, new_statistics

# partial rows that one program merges at once, and the elements its tile holds
_MOST_PARTIALS = 1024
_GROUP = 128
_TILE = 4096
_MERGED = ("out_count_ptr", "out_mean_ptr", "out_m2_ptr")


@triton.jit
def merge_tile(count, mean, m2):
    """Chan's formula over axis 0: counts [P, 1], means and M2 [P, C] -> (count, mean, M2).

    The mean is refined once, because the first estimate carries the rounding of a sum of large
    numbers.
    """
    total = tl.sum(count)
    inverse = 1.0 / total
    first = tl.sum(count * mean, 0) * inverse
    merged = first + tl.sum(count * (mean - first[None, :]), 0) * inverse
    from_merged = mean - merged[None, :]
    # a NaN or an infinity in a mean reaches the variance as well, except through a count of zero
    spread = tl.where(count > 0, count * from_merged * from_merged, 0.0)
    return total, merged, tl.sum(m2 + spread, 0)


@triton.jit
def merge_statistics_kernel(
    count_ptr, mean_ptr, m2_ptr, out_count_ptr, out_mean_ptr, out_m2_ptr, partials, channels,
    FINAL: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merge groups of GROUP partial statistics into one.

    Reads count [P], mean and M2 [P, C]; writes the same for ceil(P / GROUP) groups, or, where
    FINAL, mean [C] and the biased variance M2 / count [C]. Accumulates in ACC.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(channels, BLOCK_C)
    group = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = group * GROUP + tl.arange(0, GROUP)
    valid = rows < partials
    mask = valid[:, None] & (cols < channels)[None, :]
    offsets = rows.to(tl.int64)[:, None] * channels + cols[None, :]
    count = tl.load(count_ptr + rows, mask=valid, other=0.0).to(ACC)
    mean = tl.load(mean_ptr + offsets, mask=mask, other=0.0)
    m2 = tl.load(m2_ptr + offsets, mask=mask, other=0.0)
    total, merged, spread = merge_tile(count[:, None], mean, m2)
    out = group.to(tl.int64) * channels + cols
    tl.store(out_mean_ptr + out, merged, mask=cols < channels)
    if FINAL:
        tl.store(out_m2_ptr + out, spread / total, mask=cols < channels)
    else:
        tl.store(out_m2_ptr + out, spread, mask=cols < channels)
        tl.store(out_count_ptr + group, total)


@triton.jit
def _group_sum(ptr, out_ptr, offsets, mask, out, out_mask):
    tl.store(out_ptr + out, tl.sum(tl.load(ptr + offsets, mask=mask, other=0.0), 0), mask=out_mask)


@triton.jit
def sum_partials_kernel(
    a_ptr, b_ptr, c_ptr, out_a_ptr, out_b_ptr, out_c_ptr, partials, channels,
    GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Column sums of two or three matrices [P, C] over P <= GROUP rows.

    Reads the matrices, writes vectors [C]; sums in the matrices' dtype.
    """
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, GROUP)
    inside = cols < channels
    mask = (rows < partials)[:, None] & inside[None, :]
    offsets = rows[:, None] * channels + cols[None, :]
    _group_sum(a_ptr, out_a_ptr, offsets, mask, cols, inside)
    _group_sum(b_ptr, out_b_ptr, offsets, mask, cols, inside)
    if c_ptr is not None:
        _group_sum(c_ptr, out_c_ptr, offsets, mask, cols, inside)


def _tile(partials: int) -> dict[str, int]:
    group = min(max(triton.next_power_of_2(partials), 16), _MOST_PARTIALS)
    return {"GROUP": group, "BLOCK_C": min(_TILE // group, 64), "num_warps": 4}


def merge_statistics(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] from count [P], mean and M2 [P, C] of P programs."""
    acc = accumulator(mean)
    channels = mean.shape[1]
    while mean.shape[0] > _MOST_PARTIALS:
        groups = triton.cdiv(mean.shape[0], _GROUP)
        merged = (
            new_statistics(mean, groups),
            new_statistics(mean, groups, channels),
            new_statistics(mean, groups, channels),
        )
        block_c = _TILE // _GROUP
        launch(
            merge_statistics_kernel, groups * triton.cdiv(channels, block_c), mean,
            count, mean, m2, *merged, mean.shape[0], channels,
            FINAL=False, GROUP=_GROUP, BLOCK_C=block_c, ACC=acc, num_warps=4, writes=_MERGED,
        )  # fmt: skip
        count, mean, m2 = merged
    final, var = new_statistics(mean, channels), new_statistics(mean, channels)
    tile = _tile(mean.shape[0])
    launch(
        merge_statistics_kernel, triton.cdiv(channels, tile["BLOCK_C"]), mean,
        count, mean, m2, None, final, var, mean.shape[0], channels,
        FINAL=True, ACC=acc, **tile, writes=_MERGED,
    )  # fmt: skip
    return final, var


def sum_partials(matrices: list[Tensor]) -> list[Tensor]:
    """Column sums [C] of two or three matrices [P, C], P at most 1024."""
    partials, channels = matrices[0].shape
    sums = [new_statistics(matrix, channels) for matrix in matrices]
    third: list[Tensor | None] = [None] * (3 - len(matrices))
    tile = _tile(partials)
    launch(
        sum_partials_kernel, triton.cdiv(channels, tile["BLOCK_C"]), matrices[0],
        *matrices, *third, *sums, *third, partials, channels, **tile,
        writes=("out_a_ptr", "out_b_ptr", "out_c_ptr"),
    )  # fmt: skip
    return sums


def row_programs(rows: int, block_m: int, channel_blocks: int, programs: int) -> int:
    """How many programs share the row tiles of one column block of a reduction."""
    wanted = min(triton.cdiv(rows, block_m), max(programs // channel_blocks, 1))
    return min(wanted, _MOST_PARTIALS)


def empty_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of no rows at all: zeros."""
    return new_statistics(y, y.shape[1]).zero_(), new_statistics(y, y.shape[1]).zero_()
