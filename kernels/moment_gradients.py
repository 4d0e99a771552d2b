"""The gradients of a 1x1 convolution's weight and BN, and the operands of its input's gradient.

From what one pass over the activations has found, P = sum (z - p) g^T and sum g, and the moments of
z. W [N, K] is the weight, rounded to the dtype its product uses; m = mean(z - p).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_channels, load_scale
from .launch import launch, new_matrix, new_statistics
from .moment_statistics import load_rounded
from .moments import triangle_tile
from .split_sums import upper_area
from .sum_rows import sum_rows

# channels of a program that goes through the rows of W and P, and how much of K at a time
_ROWS = {"BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 4}
# tiles of W Cov [N, K] and of the upper triangle of W^T W [K, K]: exact fp32 products have no
# tensor cores, so small ones, and enough of them
_WEIGHT = {"BLOCK_N": 32, "BLOCK_K": 64, "BLOCK_I": 16, "num_warps": 4, "num_stages": 3}
_MIXING = {"BLOCK_K": 32, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}


@triton.jit
def moment_gradients_kernel(
    conv_weight_ptr, product_ptr, sum_g_ptr, weight_ptr, mean_ptr, invstd_ptr, pivot_ptr,
    offset_ptr, shift_ptr, sum_gy_ptr, gain_ptr, dmatrix_ptr, dweight_ptr, inner, outer,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of a program's rows n, with scale = invstd weight [N]:

        sum_gy = sum g (y - mean) = the row sums of W o P^T  +  (W p - mean) sum g
        gain = W scale      dmatrix = P^T scale + (scale sum_g) p^T      dweight = invstd sum_gy

    Where offset_ptr (m) is given, W p - mean is -W m, plus `shift` where that is. Reads W [N, K], P
    [K, N] and vectors once; writes gain, in the dtype W is rounded to, dmatrix [N, K] and vectors.
    Sums in fp32.
    """
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = ns < outer
    sum_g = load_channels(sum_g_ptr, ns, in_n, tl.float32)
    scale = load_scale(invstd_ptr, weight_ptr, ns, in_n, tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    level = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for block in range(tl.cdiv(inner, BLOCK_K)):
        ks = block * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = ks < inner
        keep = in_n[:, None] & in_k[None, :]
        pivot = load_channels(pivot_ptr, ks, in_k, tl.float32)
        w = load_rounded(conv_weight_ptr, ns, outer, ks, inner, gain_ptr.dtype.element_ty)
        transposed = ks.to(tl.int64)[None, :] * outer + ns[:, None]
        p = tl.load(product_ptr + transposed, mask=keep, other=0.0)
        total += w * p
        if offset_ptr is not None:
            level -= w * load_channels(offset_ptr, ks, in_k, tl.float32)[None, :]
        else:
            level += w * pivot[None, :]
        place = ns.to(tl.int64)[:, None] * inner + ks[None, :]
        gain = (w * scale[:, None]).to(gain_ptr.dtype.element_ty)
        tl.store(gain_ptr + place, gain, mask=keep)
        dmatrix = p * scale[:, None] + (scale * sum_g)[:, None] * pivot[None, :]
        tl.store(dmatrix_ptr + place, dmatrix, mask=keep)
    lacking = tl.sum(level, 1)
    if offset_ptr is None:
        lacking -= load_channels(mean_ptr, ns, in_n, tl.float32)
    elif shift_ptr is not None:
        lacking += load_channels(shift_ptr, ns, in_n, tl.float32)
    sum_gy = tl.sum(total, 1) + lacking * sum_g
    invstd = load_channels(invstd_ptr, ns, in_n, tl.float32)
    tl.store(sum_gy_ptr + ns, sum_gy, mask=in_n)
    tl.store(dweight_ptr + ns, invstd * sum_gy, mask=in_n)


@triton.jit
def load_slope(invstd_ptr, weight_ptr, all_gy_ptr, count, ns, in_n):
    """(scale, slope) [N] of dy = scale * (g - mean_g) + slope * (y - mean)."""
    invstd = load_channels(invstd_ptr, ns, in_n, tl.float32)
    scale = load_scale(invstd_ptr, weight_ptr, ns, in_n, tl.float32)
    mean_gy = load_channels(all_gy_ptr, ns, in_n, tl.float32) / count
    return scale, -scale * invstd * invstd * mean_gy


@triton.jit
def at_least_one(count_ptr, rows):
    """What to divide a sum by: the number at count_ptr, or the rows; one where there are none."""
    if count_ptr is not None:
        return tl.maximum(tl.load(count_ptr).to(tl.float32), 1.0)
    else:
        return tl.maximum(rows, 1.0)


@triton.jit
def moment_weight_kernel(
    conv_weight_ptr, gain_ptr, dmatrix_ptr, covariance_ptr, pivot_ptr, offset_ptr, shift_ptr,
    weight_ptr, invstd_ptr, all_g_ptr, all_gy_ptr, count_ptr, out_ptr, parts_ptr,
    rows, inner, outer,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """What the statistics, being the batch's own, add to the gradient of W, and to the constant:

        out = dmatrix + M slope W Cov + (M level) (p + m)^T
        parts[J, k] = sum_n tilted[n, k] shift[n] - gain[n, k] mean_g[n]    over a block J of N

    with tilted = W slope, level = shift slope - scale mean_g; shift_ptr None: zero. Reads dmatrix
    and gain [N, K] once, W again and Cov [K, K] once a block of N; writes out [N, K] and parts
    [ceil(N / BLOCK_N), K]. Accumulates in fp32, never in TF32.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(inner, BLOCK_K)
    n_block = pid // across
    ns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = (pid % across) * BLOCK_K + tl.arange(0, BLOCK_K)
    in_n = ns < outer
    in_k = ks < inner
    keep = in_n[:, None] & in_k[None, :]
    place = ns.to(tl.int64)[:, None] * inner + ks[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for block in range(tl.cdiv(inner, BLOCK_I)):
        within = block * BLOCK_I + tl.arange(0, BLOCK_I)
        mask = (within < inner)[:, None] & in_k[None, :]
        column = within.to(tl.int64)[:, None] * inner + ks[None, :]
        covariance = tl.load(covariance_ptr + column, mask=mask, other=0.0)
        w = load_rounded(conv_weight_ptr, ns, outer, within, inner, gain_ptr.dtype.element_ty)
        acc = tl.dot(w, covariance, acc, input_precision="ieee")
    count = at_least_one(count_ptr, rows)
    scale, slope = load_slope(invstd_ptr, weight_ptr, all_gy_ptr, count, ns, in_n)
    mean_g = load_channels(all_g_ptr, ns, in_n, tl.float32) / count
    level = -scale * mean_g
    gain = tl.load(gain_ptr + place, mask=keep, other=0.0)
    constant = -gain.to(tl.float32) * mean_g[:, None]
    if shift_ptr is not None:
        shift = load_channels(shift_ptr, ns, in_n, tl.float32)
        level += shift * slope
        w = load_rounded(conv_weight_ptr, ns, outer, ks, inner, gain_ptr.dtype.element_ty)
        constant += w * (slope * shift)[:, None]
    part = n_block.to(tl.int64) * inner + ks
    tl.store(parts_ptr + part, tl.sum(constant, 0), mask=in_k)
    centre = load_channels(pivot_ptr, ks, in_k, tl.float32)
    centre += load_channels(offset_ptr, ks, in_k, tl.float32)
    dmatrix = tl.load(dmatrix_ptr + place, mask=keep, other=0.0)
    dmatrix += acc * (slope * rows)[:, None] + (level * rows)[:, None] * centre[None, :]
    tl.store(out_ptr + place, dmatrix, mask=keep)


@triton.jit
def moment_mixing_kernel(
    conv_weight_ptr, pivot_ptr, offset_ptr, weight_ptr, invstd_ptr, all_gy_ptr, count_ptr,
    mixing_ptr, parts_ptr, rows, inner, outer,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """mixing = W^T diag(slope) W [K, K], and its product with the mean of its operand:

        parts[J, i] = -sum_j mixing[i, j] v[j]    over a block J of K, of mixing as it is rounded

    v = p + m, and m where pivot_ptr is None: the product takes z - p. A program makes a tile of the
    upper triangle and its mirror image. Reads W [N, K] once a block of K (from cache but for the
    first); writes mixing and parts [ceil(K / BLOCK_K), K]. Accumulates in fp32, never in TF32.
    """
    blocks = tl.cdiv(inner, BLOCK_K)
    i, j = triangle_tile(tl.program_id(0), blocks)
    lanes = tl.arange(0, BLOCK_K)
    left = i * BLOCK_K + lanes
    right = j * BLOCK_K + lanes
    in_left = left < inner
    in_right = right < inner
    count = at_least_one(count_ptr, rows)
    acc = tl.zeros((BLOCK_K, BLOCK_K), tl.float32)
    for block in range(tl.cdiv(outer, BLOCK_N)):
        ns = block * BLOCK_N + tl.arange(0, BLOCK_N)
        _, slope = load_slope(invstd_ptr, weight_ptr, all_gy_ptr, count, ns, ns < outer)
        a = (
            load_rounded(conv_weight_ptr, ns, outer, left, inner, mixing_ptr.dtype.element_ty)
            * slope[:, None]
        )
        b = load_rounded(conv_weight_ptr, ns, outer, right, inner, mixing_ptr.dtype.element_ty)
        acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")
    # symmetric on the diagonal too, where a and b are rounded differently
    acc = tl.where(i == j, (acc + tl.trans(acc)) * 0.5, acc)
    tile = acc.to(mixing_ptr.dtype.element_ty)
    mirrored = tl.trans(tile)
    upper = left.to(tl.int64)[:, None] * inner + right[None, :]
    lower = right.to(tl.int64)[:, None] * inner + left[None, :]
    tl.store(mixing_ptr + upper, tile, mask=in_left[:, None] & in_right[None, :])
    # a tile on the diagonal is its own mirror image
    others = right < tl.where(i == j, 0, inner)
    tl.store(mixing_ptr + lower, mirrored, mask=others[:, None] & in_left[None, :])
    here = load_channels(offset_ptr, right, in_right, tl.float32)
    there = load_channels(offset_ptr, left, in_left, tl.float32)
    if pivot_ptr is not None:
        here += load_channels(pivot_ptr, right, in_right, tl.float32)
        there += load_channels(pivot_ptr, left, in_left, tl.float32)
    part = parts_ptr + j.to(tl.int64) * inner + left
    tl.store(part, -tl.sum(tile.to(tl.float32) * here[None, :], 1), mask=in_left)
    part = parts_ptr + i.to(tl.int64) * inner + right
    tl.store(part, -tl.sum(mirrored.to(tl.float32) * there[None, :], 1), mask=others)


def moment_gradients(
    conv_weight: Tensor, product: Tensor, sum_g: Tensor, weight: Tensor | None, mean: Tensor,
    invstd: Tensor, pivot: Tensor, offset: Tensor | None, shift: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(sum_gy [N], gain, dmatrix [N, K], dweight [N]): all there is with frozen statistics.

    Args:
        conv_weight: W [N, K]. product: P [K, N]. weight: gamma [N] or None.
        offset: m [K], None with frozen statistics. shift: W (p + m) - mean [N], None: zero.
        dtype: of W's product with z, and so of gain.
    """
    outer, inner = conv_weight.shape
    sum_gy, dweight = new_statistics(product, outer), new_statistics(product, outer)
    gain, dmatrix = (new_matrix(product, kind, outer, inner) for kind in (dtype, product.dtype))
    launch(
        moment_gradients_kernel, triton.cdiv(outer, _ROWS["BLOCK_N"]), product,
        conv_weight, product, sum_g, weight, mean if offset is None else None, invstd, pivot,
        offset, shift, sum_gy, gain, dmatrix, dweight, inner, outer, **_ROWS,
        writes=("sum_gy_ptr", "gain_ptr", "dmatrix_ptr", "dweight_ptr"),
    )  # fmt: skip
    return sum_gy, gain, dmatrix, dweight


def moment_batch_gradients(
    conv_weight: Tensor, gain: Tensor, dmatrix: Tensor, all_g: Tensor, all_gy: Tensor,
    weight: Tensor | None, invstd: Tensor, pivot: Tensor, offset: Tensor, covariance: Tensor,
    shift: Tensor | None, count: Tensor | None, rows: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(mixing [K, K] in the dtype of gain, constant [K], dmatrix [N, K]) of the batch's statistics.

    Args:
        conv_weight, weight, offset, shift: as in `moment_gradients`, which gave gain and dmatrix.
        all_g, all_gy: sum g and sum g (y - mean) over the rows of all ranks.
        count: those rows, a tensor of one number; None: `rows`.
        rows: M, the rows of this rank.
    """
    outer, inner = conv_weight.shape
    down = triton.cdiv(outer, _WEIGHT["BLOCK_N"])
    across = triton.cdiv(inner, _MIXING["BLOCK_K"])
    out = new_statistics(dmatrix, outer, inner)
    mixing = new_matrix(gain, gain.dtype, inner, inner)
    # what both kernels add to the constant, to be summed together
    parts = new_statistics(dmatrix, down + across, inner)
    launch(
        moment_weight_kernel, down * triton.cdiv(inner, _WEIGHT["BLOCK_K"]), out,
        conv_weight, gain, dmatrix, covariance, pivot, offset, shift, weight, invstd, all_g, all_gy,
        count, out, parts[:down], float(rows), inner, outer, **_WEIGHT,
        writes=("out_ptr", "parts_ptr"), flops=2 * outer * inner * inner,
    )  # fmt: skip
    launch(
        moment_mixing_kernel, across * (across + 1) // 2, out,
        conv_weight, pivot if gain.dtype != torch.float32 else None, offset, weight, invstd, all_gy,
        count, mixing, parts[down:], float(rows), inner, outer, **_MIXING,
        writes=("mixing_ptr", "parts_ptr"), flops=2 * outer * upper_area(inner, _MIXING["BLOCK_K"]),
    )  # fmt: skip
    return mixing, sum_rows(parts, new_statistics(dmatrix, inner)), out
