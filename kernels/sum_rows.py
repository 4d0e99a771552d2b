"""The sum of the rows of a matrix in a fixed order: what finishes a split over rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, new_statistics

# rows that one program adds up: at most at the last level, at an earlier one, at once
_MOST_ROWS = 256
_GROUP = 128
_LANES = 16


@triton.jit
def sum_rows_kernel(
    a_ptr, out_ptr, rows, columns,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[g] = sum of the rows g*GROUP ... of a, rounded to the dtype of out.

    Reads a [P, C] once; writes out [ceil(P / GROUP), C]. Accumulates in the dtype of a.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(columns, BLOCK_C)
    group = pid // across
    cols = (pid % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < columns
    total = tl.zeros((BLOCK_M, BLOCK_C), a_ptr.dtype.element_ty)
    for step in range(GROUP // BLOCK_M):
        here = group * GROUP + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (here < rows)[:, None] & inside[None, :]
        offsets = here.to(tl.int64)[:, None] * columns + cols[None, :]
        total += tl.load(a_ptr + offsets, mask=mask, other=0.0)
    out = group.to(tl.int64) * columns + cols
    tl.store(out_ptr + out, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=inside)


def sum_rows(matrix: Tensor, out: Tensor) -> Tensor:
    """Write the column sums of a dense matrix [P, C] to `out`, C elements in the columns' order."""
    columns = matrix.shape[1]
    while matrix.shape[0] > _MOST_ROWS:
        groups = triton.cdiv(matrix.shape[0], _GROUP)
        matrix = _sum(matrix, new_statistics(matrix, groups, columns), groups, _GROUP)
    group = max(triton.next_power_of_2(matrix.shape[0]), _LANES)
    return _sum(matrix, out, 1, group)


def _sum(matrix: Tensor, out: Tensor, groups: int, group: int) -> Tensor:
    rows, columns = matrix.shape
    block = min(triton.next_power_of_2(columns), 128)
    launch(
        sum_rows_kernel, groups * triton.cdiv(columns, block), matrix, matrix, out, rows, columns,
        GROUP=group, BLOCK_M=_LANES, BLOCK_C=block, num_warps=4,
        writes=("out_ptr",),
    )  # fmt: skip
    return out


def weight_gradient(partials: Tensor | None, weight: Tensor) -> Tensor:
    """The gradient of a weight [N, C, KH, KW], in its dtype and strides, from partial ones.

    Args:
        partials: [P, N * KH * KW * C], channels innermost; None is no rows at all: zeros.
    """
    if partials is None:
        return torch.zeros_like(weight)
    dense = torch.empty(
        weight.shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last
    )
    sum_rows(partials, dense)
    if dense.stride() == weight.stride() or weight.numel() == 0:
        return dense
    # an optimiser pairs the gradient with the weight by their strides
    return torch.empty_like(weight).copy_(dense)
