"""Batch normalisation after a 1x1 convolution y = z W^T without y: from the moments of z.

z [M, K] are the rows of the convolution's input, W [N, K] its weight as the product uses it. The
moments are taken about a pivot p [K]: m = mean(z - p), Cov = the covariance of z. Statistics and
gradients follow from m, Cov and the products of the launches; docs/engine.md derives them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import launch
from ..backends.fakes import exact, statistics_dtype
from ..backends.reference_moments import as_matrix, times
from .batch_norm import (
    Branch,
    Normalisation,
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


def affine_of(
    mean: Tensor, invstd: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(scale, shift) [N] of a BN whose input is in memory."""
    return _epilogue(-mean, invstd, gamma, beta)


def _epilogue(
    level: Tensor, invstd: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(scale, shift) [N] with value * scale + shift = (value + level) * invstd * gamma + beta."""
    scale = invstd if gamma is None else invstd * gamma.detach().to(invstd.dtype)
    shift = level * scale
    return scale, shift if beta is None else shift + beta.detach().to(shift.dtype)


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
    if bn.training:
        moments, branch, scale, shift = _measured(
            y, prologue, pivot, weight, gamma, beta, stride, bn
        )
    else:
        moments = Moments(pivot, None, None, None)
        branch = frozen(running_mean, running_var, y, bn)
        level = -branch.mean
        if exact(y):
            level = level + times(as_matrix(weight, y, like), pivot)
        scale, shift = _epilogue(level, branch.invstd, gamma, beta)
    return moments, Affine(weight, pivot if exact(y) else None, scale, shift), branch


def _measured(
    y: Tensor,
    prologue: Prologue,
    pivot: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    stride: tuple[int, int],
    bn: Normalisation,
) -> tuple[Moments, Branch, Tensor, Tensor]:
    """(moments, branch, scale, shift) of a batch; `weight` is in the dtype of its product."""
    total, gram = launch.moments(y, *prologue, pivot, stride)
    rows = y.shape[0] * _strided(y.shape[2], stride[0]) * _strided(y.shape[3], stride[1])
    offset, covariance, here, var, invstd, scale, shift = launch.moment_statistics(
        y, weight, total, gram, pivot, gamma, beta, rows, bn.eps
    )
    if bn.process_group is None:
        branch = Branch(here, var, invstd, rows)
        return Moments(pivot, offset, covariance, None), branch, scale, shift
    # 2N numbers cross the wire where the moments themselves would be K + K*K
    mean, var, count = merge_over_ranks(here, var, rows, bn.process_group)
    branch = Branch(mean, var, torch.rsqrt(var + bn.eps), count)
    lacking = here - mean
    level = lacking - times(as_matrix(weight, y, mean), offset) if exact(y) else -mean
    moments = Moments(pivot, offset, covariance, lacking)
    return moments, branch, *_epilogue(level, branch.invstd, gamma, beta)


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
        count: values behind the statistics: over several ranks a tensor, else `rows`.
        rows: M, the rows of this rank.
        y: the input of the convolution, for the dtype its products are made in.
    """
    pivot, offset, covariance, shift = moments
    sum_gy, gain, dmatrix, dgamma = launch.moment_gradients(
        y, weight, product, sum_g, gamma, mean, invstd, pivot, offset, shift
    )
    if offset is None:  # frozen
        return Gradients(gain, None, None, dmatrix, dgamma, sum_g)
    all_g, all_gy = over_ranks((sum_g, sum_gy), bn.process_group)
    mixing, constant, dmatrix = launch.moment_batch_gradients(
        y, weight, gain, dmatrix, all_g, all_gy, gamma, invstd, pivot, offset, covariance, shift,
        count if isinstance(count, Tensor) else None, rows,
    )  # fmt: skip
    return Gradients(gain, mixing, constant, dmatrix, dgamma, sum_g)
