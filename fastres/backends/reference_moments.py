"""The launch operators between a moment form's passes in plain PyTorch: what follows from moments
and weights alone.

Signatures are those of `block_ops.BLOCK_SCHEMAS`; mathematics: docs/engine.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fakes import exact


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix @ vector. Unlike a product of two matrices it is never made in TF32."""
    return torch.mv(matrix, vector)


def as_matrix(conv_weight: Tensor, y: Tensor, like: Tensor) -> Tensor:
    """W [N, K] as its product with y uses it, in the dtype of statistics `like`."""
    return conv_weight.flatten(1).to(y.dtype).to(like.dtype)


def _scale(invstd: Tensor, weight: Tensor | None) -> Tensor:
    # an operator's outputs are tensors of their own
    return invstd.clone() if weight is None else invstd * weight.to(invstd.dtype)


def moment_statistics(y, conv_weight, s, gram, pivot, weight, bias, rows, eps):
    matrix = as_matrix(conv_weight, y, s)
    share = 1 / max(rows, 1)
    offset = s * share
    covariance = torch.addr(gram, offset, offset, beta=share, alpha=-1)
    mean = times(matrix, pivot + offset)
    var = (matrix @ covariance).mul_(matrix).sum(1).clamp_min_(0)
    if rows == 0:
        mean.zero_()
    invstd = torch.rsqrt(var + eps)
    scale = _scale(invstd, weight)
    # what (z - pivot) W^T, or z W^T, is more than y - mean
    level = times(matrix, offset) if exact(y) else mean
    beta = torch.zeros_like(mean) if bias is None else bias.to(mean.dtype)
    shift = torch.addcmul(beta, level, scale, value=-1)
    return offset, covariance, mean, var, invstd, scale, shift


def moment_gradients(
    y, conv_weight, product, sum_g, weight, mean, invstd, pivot, offset, shift
):  # fmt: skip
    matrix = as_matrix(conv_weight, y, product)
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    gain = (matrix * scale[:, None]).to(y.dtype)
    # [N, K] as the weight, in memory too
    product = product.t().clone(memory_format=torch.contiguous_format)
    sum_gy = (matrix * product).sum(1)
    if offset is None:
        sum_gy.addcmul_(times(matrix, pivot) - mean, sum_g)
    else:
        lacking = times(matrix, offset)
        sum_gy.addcmul_(lacking if shift is None else lacking - shift, sum_g, value=-1)
    dmatrix = product.mul_(scale[:, None]).addr_(scale * sum_g, pivot)
    return sum_gy, gain, dmatrix, invstd * sum_gy


def moment_batch_gradients(
    y, conv_weight, gain, dmatrix, all_g, all_gy, weight, invstd, pivot, offset, covariance, shift,
    count, rows,
):  # fmt: skip
    matrix = as_matrix(conv_weight, y, dmatrix)
    # dy = scale * (g - mean_g) + slope * (y - mean)
    total = max(rows, 1) if count is None else count.clamp(min=1)
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    mean_g = all_g / total
    slope = -scale * invstd.square() * (all_gy / total)
    level = -scale * mean_g
    if shift is not None:
        level = level + shift * slope
    tilted = matrix * slope[:, None]
    centre = pivot + offset
    dmatrix = torch.addmm(dmatrix, tilted, covariance, alpha=rows).addr_(level, centre, alpha=rows)
    mixing = matrix.t() @ tilted
    # symmetric after rounding as well
    mixing = mixing.add_(mixing.t().contiguous()).mul_(0.5).to(y.dtype)
    # of the matrices as the products use them: a gradient that must vanish then does
    constant = times(gain.to(mean_g.dtype).t(), mean_g).neg_()
    constant -= times(mixing.to(mean_g.dtype), offset if exact(y) else centre)
    if shift is not None:
        constant += times(tilted.t(), shift)
    return mixing, constant, dmatrix
