"""A 1x1 convolution's statistics, and its BN as an epilogue, from the moments of its input.

A matrix product and a sum of its partial results: of K x K and N x K numbers, none of them an
activation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels
from .launch import element, launch, new_statistics

# tiles of W Cov: exact fp32 products have no tensor cores, so small ones, and enough of them
_TILE = {"BLOCK_N": 32, "BLOCK_K": 64, "BLOCK_I": 16, "num_warps": 4, "num_stages": 3}
# parts that are added at once, and the channels of a program that adds
_GROUP = 16
_CHANNELS = 32


@triton.jit
def load_rounded(ptr, rows, height, cols, width, DTYPE: tl.constexpr):
    """A tile of a matrix [height, width], rounded to DTYPE, in fp32; 0 outside."""
    mask = (rows < height)[:, None] & (cols < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + cols[None, :]
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(DTYPE).to(tl.float32)


@triton.jit
def moment_statistics_kernel(
    s_ptr, gram_ptr, pivot_ptr, conv_weight_ptr,
    offset_ptr, covariance_ptr, mean_parts_ptr, var_parts_ptr, level_parts_ptr,
    share, inner, outer,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """m = s * share, Cov = gram * share - m m^T, and what a block J of K adds to mean, var and W m:

        mean_parts[J, n] = sum_j W[n, j] (p + m)[j]      level_parts[J, n] = sum_j W[n, j] m[j]
        var_parts[J, n] = sum_j (W Cov)[n, j] W[n, j]

    share is 1 / M, zero where M = 0: then all of it is zero. W [N, K] is rounded to DTYPE; products
    of fp32, never in TF32. Reads gram [K, K] once a block of N, W once a block of K (from cache but
    for the first), s and the pivot; writes m [K], Cov [K, K] and the parts [ceil(K / BLOCK_K), N],
    without the last one where level_parts_ptr is None.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(inner, BLOCK_K)
    down = tl.cdiv(outer, BLOCK_N)
    n_block = pid // across
    k_block = pid % across
    ns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = k_block * BLOCK_K + tl.arange(0, BLOCK_K)
    in_n = ns < outer
    in_k = ks < inner
    m = load_channels(s_ptr, ks, in_k, tl.float32) * share
    centre = load_channels(pivot_ptr, ks, in_k, tl.float32) + m
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for block in range(tl.cdiv(inner, BLOCK_I)):
        within = block * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = within < inner
        place = within.to(tl.int64)[:, None] * inner + ks[None, :]
        keep = inside[:, None] & in_k[None, :]
        gram = tl.load(gram_ptr + place, mask=keep, other=0.0)
        other = load_channels(s_ptr, within, inside, tl.float32) * share
        covariance = gram * share - other[:, None] * m[None, :]
        # the programs of one block of K share the storing of its columns
        end = tl.where(block % down == n_block, inner, 0)
        mask = (within < end)[:, None] & in_k[None, :]
        tl.store(covariance_ptr + place, covariance, mask=mask)
        w = load_rounded(conv_weight_ptr, ns, outer, within, inner, DTYPE)
        acc = tl.dot(w, covariance, acc, input_precision="ieee")
    w = load_rounded(conv_weight_ptr, ns, outer, ks, inner, DTYPE)
    part = k_block.to(tl.int64) * outer + ns
    # no rows have no mean, and not that of the pivot
    mean = tl.where(share > 0, tl.sum(w * centre[None, :], 1), 0.0)
    tl.store(mean_parts_ptr + part, mean, mask=in_n)
    tl.store(var_parts_ptr + part, tl.sum(acc * w, 1), mask=in_n)
    if level_parts_ptr is not None:
        tl.store(level_parts_ptr + part, tl.sum(w * m[None, :], 1), mask=in_n)
    if n_block == 0:
        tl.store(offset_ptr + ks, m, mask=in_k)


@triton.jit
def _sum_parts(parts_ptr, parts, cols, channels, GROUP: tl.constexpr):
    """Column sums of parts [J, C]."""
    total = tl.zeros((GROUP, cols.shape[0]), tl.float32)
    for first in range(0, parts, GROUP):
        part = first + tl.arange(0, GROUP)
        mask = (part < parts)[:, None] & (cols < channels)[None, :]
        offsets = part.to(tl.int64)[:, None] * channels + cols[None, :]
        total += tl.load(parts_ptr + offsets, mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def moment_affine_kernel(
    mean_parts_ptr, var_parts_ptr, level_parts_ptr, weight_ptr, bias_ptr,
    mean_ptr, var_ptr, invstd_ptr, scale_ptr, shift_ptr, parts, channels, eps,
    GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mean, var >= 0, invstd = 1 / sqrt(var + eps), scale = invstd * weight and shift, all [C].

    shift = bias - level * scale, where what the scale multiplies is (z - pivot) W^T; without level
    parts it is z W^T, and shift = bias - mean * scale. Reads parts [J, C], sums them in fp32.
    """
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = cols < channels
    mean = _sum_parts(mean_parts_ptr, parts, cols, channels, GROUP)
    var = _sum_parts(var_parts_ptr, parts, cols, channels, GROUP)
    # cancelled below zero; a NaN stays
    var = tl.where(var < 0, 0.0, var)
    invstd = tl.rsqrt(var + eps)
    tl.store(mean_ptr + cols, mean, mask=inside)
    tl.store(var_ptr + cols, var, mask=inside)
    tl.store(invstd_ptr + cols, invstd, mask=inside)
    scale = invstd
    if weight_ptr is not None:
        scale = scale * load_channels(weight_ptr, cols, inside, tl.float32)
    level = mean
    if level_parts_ptr is not None:
        level = _sum_parts(level_parts_ptr, parts, cols, channels, GROUP)
    shift = load_bias(bias_ptr, cols, inside, tl.float32) - level * scale
    tl.store(scale_ptr + cols, scale, mask=inside)
    tl.store(shift_ptr + cols, shift, mask=inside)


def moment_statistics(
    conv_weight: Tensor, s: Tensor, gram: Tensor, pivot: Tensor, weight: Tensor | None,
    bias: Tensor | None, rows: int, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(m [K], Cov [K, K], mean, var, invstd, scale, shift [N]) from s [K] and gram [K, K].

    Args:
        conv_weight: W [N, K], rounded to `dtype`, in which its product with z is made. In fp32 that
            product takes z - pivot, and shift is meant for it.
        weight, bias: gamma and beta [N] or None.
        rows: M, over which s and gram are sums.
    """
    outer, inner = conv_weight.shape
    across = triton.cdiv(inner, _TILE["BLOCK_K"])
    offset, covariance = new_statistics(s, inner), new_statistics(s, inner, inner)
    parts = [new_statistics(s, across, outer) for _ in range(3)]
    if dtype != torch.float32:
        parts[2] = None
    launch(
        moment_statistics_kernel, triton.cdiv(outer, _TILE["BLOCK_N"]) * across, s,
        s, gram, pivot, conv_weight, offset, covariance, *parts,
        1 / rows if rows else 0.0, inner, outer,
        DTYPE=element(dtype), **_TILE,
        writes=("offset_ptr", "covariance_ptr", "mean_parts_ptr", "var_parts_ptr",
                "level_parts_ptr"),
        flops=2 * outer * inner * inner,
    )  # fmt: skip
    vectors = [new_statistics(s, outer) for _ in range(5)]
    launch(
        moment_affine_kernel, triton.cdiv(outer, _CHANNELS), s,
        *parts, weight, bias, *vectors, across, outer, eps,
        GROUP=_GROUP, BLOCK_C=_CHANNELS, num_warps=4,
        writes=("mean_ptr", "var_ptr", "invstd_ptr", "scale_ptr", "shift_ptr"),
    )  # fmt: skip
    return offset, covariance, *vectors
