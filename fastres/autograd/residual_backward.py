"""The backward pass of one residual block, launch by launch.

A gradient travels as `dz`: with respect to the output of a ReLU. It is masked by that ReLU where
it is made or where it is read, from whatever is in memory: both may happen, masking is idempotent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import launch
from . import moment_form
from .batch_norm import means, parameter_gradient
from .moment_form import Moments, Prologue
from .residual_saved import TENSORS, Block, Layer, SavedBlock, SavedLayer


class _Incoming(NamedTuple):
    """The gradient of a block's output; `mask` is that output, None where it is masked already."""

    dout: Tensor
    mask: Tensor | None


class _Residual(NamedTuple):
    """What reaches x through the shortcut, as `launch.chain_backward` takes it."""

    gradient: Tensor | None = None
    mask: Tensor | None = None
    stride: tuple[int, int] = (1, 1)


class _Sums(NamedTuple):
    """Column sums of a masked gradient g and of g * xhat: the gradients of beta and gamma."""

    g: Tensor
    gx: Tensor


def block_backward(
    dout: Tensor,
    masked: bool,
    out: Tensor,
    x: Tensor,
    block: Block,
    saved: SavedBlock,
    need_x: bool,
    need: tuple[bool, ...],
    mask_by_x: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """(gradient of x or None, gradients of the block's tensors).

    Args:
        masked: dout is zero wherever out's ReLU was off.
        need: for every tensor of the block whether its gradient is wanted.
        mask_by_x: x is the output of a ReLU, by which its gradient shall be masked.
    """
    incoming = _Incoming(dout, None if masked else out)
    wanted = [need[i : i + TENSORS] for i in range(0, len(need), TENSORS)]
    gradients: list[list[Tensor | None]] = [[None] * TENSORS for _ in wanted]
    depth = len(block.layers)
    # below[j]: whether anything before layer j's own parameters wants a gradient
    below = [need_x or any(any(w) for w in wanted[:j]) for j in range(depth)]
    last = depth - 1
    dz, mask, relu = dout, incoming.mask, not masked
    sums: _Sums | None
    s_sums: _Sums | None = None
    if block.moments:
        y, before = saved.layers[last - 1].y, saved.layers[last - 1].normalisation
        dz, sums, gradients[last] = _expansion(
            incoming, y, before, saved.moments, saved.layers[last], saved.counts[last],
            (1, 1), block.layers[last], below[last], wanted[last],
        )  # fmt: skip
        mask, relu, last = None, True, last - 1
    else:
        second = saved.layers[-1] if block.projection is not None else None
        sums, s_sums = _reduce(incoming, saved.layers[last], second)
    residual = _Residual()
    if block.shortcut in ("identity", "pad"):
        stride = block.shortcut_stride
        residual = _Residual(dout, incoming.mask, (stride, stride))
    elif block.projection is not None and (need_x or any(wanted[-1])):
        residual, gradients[-1] = _projection(incoming, s_sums, x, block, saved, need_x, wanted[-1])
    for index in range(last, -1, -1):
        if not (below[index] or any(wanted[index])):
            return None, _flat(gradients)
        layer, own = block.layers[index], saved.layers[index]
        source = saved.layers[index - 1].y if index else x
        before = saved.layers[index - 1].normalisation if index else Prologue()
        dz, dw, *found = launch.chain_backward(
            dz, mask, own.y, *own.normalisation, *means(sums, saved.counts[index], layer.bn), relu,
            source, own.weight, *layer.geometry, *before,
            *(residual if index == 0 else _Residual()), index == 0 and mask_by_x,
            below[index], wanted[index][0],
        )  # fmt: skip
        gradients[index] = _parameter_gradients(dw, sums, own, wanted[index])
        sums, mask, relu = _Sums(*found), None, True
    return dz if need_x else None, _flat(gradients)


def _flat(gradients: list[list[Tensor | None]]) -> list[Tensor | None]:
    return [gradient for own in gradients for gradient in own]


def _reduce(
    incoming: _Incoming, own: SavedLayer, second: SavedLayer | None
) -> tuple[_Sums, _Sums | None]:
    """The sums of the last layer and of the projection beside it, in one pass."""
    dout, mask = incoming
    beside = (None, None, None) if second is None else (second.y, second.mean, second.invstd)
    sum_g, sum_gx, sum_gx_s = launch.bn_backward_reduce(
        dout, mask, own.y, *own.normalisation, *beside, mask is not None
    )
    return _Sums(sum_g, sum_gx), None if second is None else _Sums(sum_g, sum_gx_s)


def _parameter_gradients(
    dw: Tensor, sums: _Sums | None, own: SavedLayer, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    dgamma, dbeta = (None, None) if sums is None else (sums.gx, sums.g)
    return [
        dw if wanted[0] else None,
        parameter_gradient(dgamma, own.gamma, wanted[1]),
        parameter_gradient(dbeta, own.beta, wanted[2]),
        None,
        None,
    ]


def _expansion(
    incoming: _Incoming,
    y: Tensor,
    before: Prologue,
    moments: Moments,
    own: SavedLayer,
    count: Tensor | int,
    stride: tuple[int, int],
    layer: Layer,
    need_dz: bool,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, _Sums | None, list[Tensor | None]]:
    """(dz, the sums of the layer before, parameters' gradients) of a layer in moment form."""
    dout, mask = incoming
    product, sum_g = launch.expand_backward_weight(dout, mask, y, *before, moments.pivot, stride)
    rows = dout.shape[0] * dout.shape[2] * dout.shape[3]
    found = moment_form.backward(
        product, sum_g, moments, own.weight, own.gamma, own.mean, own.invstd, count, rows, y,
        layer.bn,
    )  # fmt: skip
    gradients: list[Tensor | None] = [None] * TENSORS
    if wanted[0]:
        gradients[0] = _like_weight(found.dmatrix, own.weight)
    gradients[1] = parameter_gradient(found.dweight, own.gamma, wanted[1])
    gradients[2] = parameter_gradient(found.dbias, own.beta, wanted[2])
    if not need_dz:
        return None, None, gradients
    pivot = moments.pivot if moment_form.exact(y) else None
    dz, *sums = launch.expand_backward_data(
        dout, mask, y, *before, pivot, found.gain, found.mixing, found.constant, stride
    )
    return dz, _Sums(*sums), gradients


def _like_weight(matrix: Tensor, weight: Tensor) -> Tensor:
    """A gradient [N, K] in the form of its 1x1 weight, strides of extents of one included."""
    # Dynamo cannot ask that of a weight in a backward pass, and its compiler saves the copy
    if not torch.compiler.is_compiling() and weight.is_contiguous():
        return matrix.to(weight.dtype).as_strided(weight.shape, weight.stride())
    return torch.empty_like(weight).copy_(matrix.view(weight.shape))


def _projection(
    incoming: _Incoming,
    sums: _Sums | None,
    x: Tensor,
    block: Block,
    saved: SavedBlock,
    need_x: bool,
    wanted: tuple[bool, ...],
) -> tuple[_Residual, list[Tensor | None]]:
    """(what reaches x, parameters' gradients); `sums` where another layer's pass has them."""
    layer, own, count = block.projection, saved.layers[-1], saved.counts[-1]
    stride = layer.geometry.stride
    if block.projected_moments:
        dx, _, gradients = _expansion(
            incoming, x, Prologue(), saved.projected, own, count, stride, layer, need_x, wanted
        )
        return _Residual(dx, None, stride), gradients
    if sums is None:
        sums, _ = _reduce(incoming, own, None)
    dout, mask = incoming
    dx, dw, *_ = launch.chain_backward(
        dout, mask, own.y, *own.normalisation, *means(sums, count, layer.bn), False,
        x, own.weight, *layer.geometry, *Prologue(), *_Residual(), False, need_x, wanted[0],
    )  # fmt: skip
    gradients = _parameter_gradients(dw, sums, own, wanted)
    return _Residual(dx if need_x else None), gradients
