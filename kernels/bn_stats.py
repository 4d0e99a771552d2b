"""Mean and biased variance of every channel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import accumulator, blocks, launch, new_statistics, rows_of
from .partials import empty_statistics, merge_statistics, merge_tile, row_programs


@triton.jit
def bn_stats_kernel(
    y_ptr, count_ptr, mean_ptr, m2_ptr, rows, channels, row_programs,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Welford's recurrence in every lane of a tile, Chan's formula across the tile's rows.

    n += 1; d = y - mean; mean += d / n; M2 += d * (y - mean)

    Reads y [M, C] once; writes count [P], mean and M2 [P, C] for P = row_programs. Program p takes
    the row tiles p, p + P, ... Accumulates in ACC.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(channels, BLOCK_C)
    program = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = tl.arange(0, BLOCK_M)
    inside = lanes[:, None] * channels + cols[None, :]
    count = tl.zeros((BLOCK_M, 1), ACC)
    mean = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    m2 = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for tile in range(program, tl.cdiv(rows, BLOCK_M), row_programs):
        row0 = tile * BLOCK_M
        valid = (row0 + lanes < rows)[:, None]
        mask = valid & (cols < channels)[None, :]
        base = y_ptr + row0.to(tl.int64) * channels
        y = tl.load(base + inside, mask=mask, other=0.0).to(ACC)
        count += valid.to(ACC)
        from_old = tl.where(valid, y - mean, 0.0)
        # a lane without a valid row yet has a count of zero
        mean += from_old * (1.0 / tl.where(count == 0, 1.0, count))
        m2 += from_old * (y - mean)
    total, merged, spread = merge_tile(count, mean, m2)
    out = program.to(tl.int64) * channels + cols
    tl.store(mean_ptr + out, merged, mask=cols < channels)
    tl.store(m2_ptr + out, spread, mask=cols < channels)
    if pid % across == 0:
        tl.store(count_ptr + program, total)


def bn_stats(y: Tensor, config: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of a dense channels_last y [N, C, H, W]; zeros if empty."""
    rows, channels = rows_of(y), y.shape[1]
    if rows == 0 or channels == 0:
        return empty_statistics(y)
    shape = blocks(config["tile"], channels)
    across = triton.cdiv(channels, shape["BLOCK_C"])
    programs = row_programs(rows, shape["BLOCK_M"], across, config["programs"])
    count = new_statistics(y, programs)
    mean, m2 = new_statistics(y, programs, channels), new_statistics(y, programs, channels)
    launch(
        bn_stats_kernel, programs * across, y,
        y, count, mean, m2, rows, channels, programs,
        **shape, ACC=accumulator(y), num_warps=config["num_warps"],
        writes=("count_ptr", "mean_ptr", "m2_ptr"),
    )  # fmt: skip
    return merge_statistics(count, mean, m2)
