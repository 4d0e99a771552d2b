"""Batch normalisation after a 1x1 convolution y = z W^T without y: from the moments of z.

z [M, K] are the rows of the convolution's input, W [N, K] its weight as the product uses it. The
moments are taken about a pivot p [K]: m = mean(z - p), Cov = the covariance of z. Statistics and
gradients follow from m, Cov and the products of the launches; docs/engine.md derives them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import launch
from ..backends.fakes import statistics_dtype
from .batch_norm import (
    Branch,
    Normalisation,
    at_least_one,
    frozen,
    merge_over_ranks,
    over_ranks,
)


class Prologue(NamedTuple):
    """The BN whose relu(bn(y)) is z; all None: z is y itself."""

    mean: Tensor | None = None
    invstd: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


class Moments(NamedTuple):
    """What the backward pass keeps of z: pivot, m [K], Cov [K, K]; `shift` [N] as below.

    `shift` is W (p + m) - mean: zero, except beside statistics that several ranks share, whose
    mean is not that of this rank's rows. None stands for zero; m and Cov are None if frozen.
    """

    pivot: Tensor
    offset: Tensor | None
    covariance: Tensor | None
    shift: Tensor | None


class Affine(NamedTuple):
    """y's BN as the epilogue of the product: ((z - pivot) W^T) * scale + shift.

    `weight` is W as the product uses it, in z's dtype.
    """

    weight: Tensor
    pivot: Tensor | None
    scale: Tensor
    shift: Tensor


class Gradients(NamedTuple):
    """The operands of `expand_backward_data`, and the gradients of W (as a matrix) and the BN."""

    gain: Tensor
    mixing: Tensor | None
    constant: Tensor | None
    dmatrix: Tensor
    dweight: Tensor
    dbias: Tensor


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix @ vector. Unlike a product of two matrices it is never made in TF32."""
    return torch.mv(matrix, vector)


def exact(y: Tensor) -> bool:
    """Whether products take z - pivot. 16-bit ones take z: rounding z - p would flip ReLUs."""
    return y.dtype in (torch.float32, torch.float64)


def scale_of(invstd: Tensor, gamma: Tensor | None) -> Tensor:
    """invstd * gamma [N]."""
    return invstd if gamma is None else invstd * gamma.detach().to(invstd.dtype)


def affine_of(
    mean: Tensor, invstd: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(scale, shift) [N] of a BN whose input is in memory."""
    scale = scale_of(invstd, gamma)
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta.detach().to(mean.dtype)


def pivot_of(y: Tensor, prologue: Prologue, stride: tuple[int, int], like: Tensor) -> Tensor:
    """A vector [K] near z's mean: relu(beta), or the mean of the first image.

    `like` gives the statistics' dtype.
    """
    if prologue.mean is not None:
        if prologue.bias is None:
            return torch.zeros_like(prologue.mean)
        return prologue.bias.detach().to(like.dtype).relu()
    first = y[:1, :, :: stride[0], :: stride[1]].to(like.dtype)
    return first.sum((0, 2, 3)) / max(first.shape[2] * first.shape[3], 1)


def as_matrix(weight: Tensor, like: Tensor) -> Tensor:
    """W [N, K], which is in the dtype of its product, in the statistics' dtype."""
    return weight.flatten(1).to(like.dtype)


def forward(
    y: Tensor,
    prologue: Prologue,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    stride: tuple[int, int],
    bn: Normalisation,
) -> tuple[Moments, Affine, Branch]:
    """The statistics of the convolution's output and its BN as an epilogue."""
    like = prologue.mean
    if like is None:
        like = torch.empty(0, dtype=statistics_dtype(y.dtype), device=y.device)
    pivot = pivot_of(y, prologue, stride, like)
    weight = weight.detach().to(y.dtype)
    matrix = as_matrix(weight, like)
    if bn.training:
        moments, branch = _measured(y, prologue, pivot, matrix, stride, bn)
    else:
        moments = Moments(pivot, None, None, None)
        branch = frozen(running_mean, running_var, y, bn)
    scale = scale_of(branch.invstd, gamma)
    if not exact(y):
        shift = -branch.mean * scale
    elif moments.offset is None:
        shift = (times(matrix, pivot) - branch.mean) * scale
    else:
        shift = -times(matrix, moments.offset) * scale
        if moments.shift is not None:
            shift = shift + moments.shift * scale
    if beta is not None:
        shift = shift + beta.detach().to(like.dtype)
    return moments, Affine(weight, pivot if exact(y) else None, scale, shift), branch


def _measured(
    y: Tensor, prologue: Prologue, pivot: Tensor, matrix: Tensor, stride, bn: Normalisation
) -> tuple[Moments, Branch]:
    total, gram = launch.moments(y, *prologue, pivot, stride)
    count: Any = y.shape[0] * _strided(y.shape[2], stride[0]) * _strided(y.shape[3], stride[1])
    share = 1 / max(count, 1)
    offset = total * share
    covariance = gram * share - torch.outer(offset, offset)
    mean = times(matrix, pivot + offset)
    var = ((matrix @ covariance) * matrix).sum(1).clamp_min(0)
    if count == 0:
        mean, var = torch.zeros_like(mean), torch.zeros_like(var)
    shift = None
    if bn.process_group is not None:
        # 2N numbers cross the wire where the moments themselves would be K + K*K
        here = mean
        mean, var, count = merge_over_ranks(mean, var, count, bn.process_group)
        shift = here - mean
    branch = Branch(mean, var, torch.rsqrt(var + bn.eps), count)
    return Moments(pivot, offset, covariance, shift), branch


def _strided(extent: int, stride: int) -> int:
    return (extent - 1) // stride + 1


def backward(
    product: Tensor,
    sum_g: Tensor,
    moments: Moments,
    weight: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    count: Tensor | int,
    rows: int,
    y: Tensor,
    bn: Normalisation,
) -> Gradients:
    """All gradients from product = sum (z - p) g^T [K, N] and sum_g [N].

    Args:
        count: values behind the statistics, over all ranks.
        rows: M, the rows of this rank.
        y: the input of the convolution, for the dtype its products are made in.
    """
    matrix = as_matrix(weight.detach().to(y.dtype), mean)
    scale = scale_of(invstd, gamma)
    gain = (matrix * scale[:, None]).to(y.dtype)
    product = product.t().contiguous()  # [N, K] as the weight
    # sum of g * (y - mean)
    sum_gy = (matrix * product).sum(1)
    dmatrix = (product * scale[:, None]).addr_(scale * sum_g, moments.pivot)
    if moments.offset is None:
        sum_gy = sum_gy + (times(matrix, moments.pivot) - mean) * sum_g
        return Gradients(gain, None, None, dmatrix, invstd * sum_gy, sum_g)
    sum_gy = sum_gy - times(matrix, moments.offset) * sum_g
    if moments.shift is not None:
        sum_gy = sum_gy + moments.shift * sum_g
    all_g, all_gy = over_ranks((sum_g, sum_gy), bn.process_group)
    # dy = scale * (g - mean_g) + slope * (y - mean)
    mean_g = all_g / at_least_one(count)
    slope = -scale * invstd.square() * all_gy / at_least_one(count)
    level = -scale * mean_g
    centre = moments.pivot + moments.offset
    if moments.shift is not None:
        level = level + moments.shift * slope
    tilted = matrix * slope[:, None]
    dmatrix.addmm_(tilted, moments.covariance * rows).addr_(level * rows, centre)
    mixing = matrix.t() @ tilted
    mixing = ((mixing + mixing.t()) / 2).to(y.dtype)  # symmetric after rounding as well
    # of the matrices as the products use them: a gradient that must vanish then does
    operand_pivot = moments.pivot if exact(y) else 0
    constant = -times(gain.to(mean.dtype).t(), mean_g)
    constant = constant - times(mixing.to(mean.dtype), centre - operand_pivot)
    if moments.shift is not None:
        constant = constant + times(tilted.t(), moments.shift)
    return Gradients(gain, mixing, constant, dmatrix, invstd * sum_gy, sum_g)
