"""Adding up what the programs of a split product found, in a fixed order.

A product whose long axis is the rows is shared out: each of S programs writes its part of a matrix
[R, C] and, as one more row, of a vector [C]. Nothing is added atomically, so that a launch repeated
gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, new_statistics

# parts that are added at once, and the elements of a program's tile
_GROUP = 64
_TILE = 4096


@triton.jit
def split_sums_kernel(
    parts_ptr, matrix_ptr, vector_ptr, splits, height, width,
    SYMMETRIC: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """matrix = the sum over splits of parts[:, :R], vector = that of parts[:, R].

    Reads parts [S, R + 1, C]; writes matrix [R, C] and vector [C] in fp32. SYMMETRIC: only the
    upper triangle of the parts is meant, and is mirrored.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(width, BLOCK_C)
    row = pid // across
    first_col = (pid % across) * BLOCK_C
    cols = first_col + tl.arange(0, BLOCK_C)
    inside = cols < width
    wanted = inside
    if SYMMETRIC:
        # whole blocks for the loads, which stay 16 bytes wide; what is below is not stored
        low = tl.where(row == height, 0, row)
        ends = tl.zeros((BLOCK_C,), tl.int32) + (first_col + BLOCK_C)
        inside = inside & (ends > low)
        wanted = inside & (cols >= low)
    group = tl.arange(0, GROUP)
    size = (height + 1) * width
    here = parts_ptr + row.to(tl.int64) * width
    total = tl.zeros((GROUP, BLOCK_C), tl.float32)
    for first in range(0, splits, GROUP):
        part = first + group
        mask = (part < splits)[:, None] & inside[None, :]
        offsets = part.to(tl.int64)[:, None] * size + cols[None, :]
        value = tl.load(here + offsets, mask=mask, other=0.0)
        total += tl.where(wanted[None, :], value, 0.0)
    result = tl.sum(total, 0)
    if row == height:
        tl.store(vector_ptr + cols, result, mask=wanted)
    else:
        tl.store(matrix_ptr + row.to(tl.int64) * width + cols, result, mask=wanted)
        if SYMMETRIC:
            tl.store(matrix_ptr + cols.to(tl.int64) * width + row, result, mask=wanted)


@triton.jit
def group_sums_kernel(
    a_ptr, b_ptr, out_a_ptr, out_b_ptr, partials, channels,
    GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over groups of GROUP rows of two matrices [P, C], written as [ceil(P / GROUP), C]."""
    pid = tl.program_id(0)
    across = tl.cdiv(channels, BLOCK_C)
    group = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = group * GROUP + tl.arange(0, GROUP)
    inside = cols < channels
    mask = (rows < partials)[:, None] & inside[None, :]
    offsets = rows.to(tl.int64)[:, None] * channels + cols[None, :]
    out = group.to(tl.int64) * channels + cols
    a = tl.load(a_ptr + offsets, mask=mask, other=0.0)
    b = tl.load(b_ptr + offsets, mask=mask, other=0.0)
    tl.store(out_a_ptr + out, tl.sum(a, 0), mask=inside)
    tl.store(out_b_ptr + out, tl.sum(b, 0), mask=inside)


def upper_area(extent: int, block: int) -> int:
    """Elements of the square tiles of a matrix [extent, extent] on and above its diagonal."""
    starts = range(0, extent, block)
    return sum(min(block, extent - start) * (extent - start) for start in starts)


def split_sums(parts: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(matrix [R, C], vector [C]) from parts [S, R + 1, C] in fp32."""
    splits, height, width = parts.shape[0], parts.shape[1] - 1, parts.shape[2]
    matrix, vector = new_statistics(parts, height, width), new_statistics(parts, width)
    group = min(triton.next_power_of_2(splits), _GROUP)
    columns = min(_TILE // group, max(triton.next_power_of_2(width), 16))
    read = upper_area(height, columns) if symmetric else height * width
    launch(
        split_sums_kernel, (height + 1) * triton.cdiv(width, columns), parts,
        parts, matrix, vector, splits, height, width,
        SYMMETRIC=symmetric, GROUP=group, BLOCK_C=columns, num_warps=4,
        writes=("matrix_ptr", "vector_ptr"), reads={"parts_ptr": splits * (read + width)},
    )  # fmt: skip
    return matrix, vector


def row_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Column sums [C] of two matrices [P, C] in fp32, P >= 1."""
    channels = a.shape[1]
    columns = _TILE // _GROUP
    while True:
        groups = triton.cdiv(a.shape[0], _GROUP)
        sums = [new_statistics(a, groups, channels) for _ in range(2)]
        launch(
            group_sums_kernel, groups * triton.cdiv(channels, columns), a,
            a, b, *sums, a.shape[0], channels,
            GROUP=_GROUP, BLOCK_C=columns, num_warps=4,
            writes=("out_a_ptr", "out_b_ptr"),
        )  # fmt: skip
        a, b = sums
        if groups == 1:
            return a[0], b[0]


def split_count(rows: int, block_m: int, tiles: int, programs: int) -> int:
    """How many programs share the rows of each of `tiles` tiles of a product: `programs` in all."""
    return max(min(triton.cdiv(rows, block_m), programs // tiles), 1)


def fold_count(block_m: int, columns: int, num_warps: int, itemsize: int) -> int:
    """Rows of a loaded tile that a block's threads hold side by side, 16 bytes each."""
    return min(max(num_warps * 32 * (16 // itemsize) // columns, 1), block_m)
