"""A run of residual blocks as one differentiable step (level 2 of docs/engine.md).

Between two convolutions a block keeps only the raw output of the first: it is normalised again
wherever it is read. Where a block ends in a 1x1 convolution, that one's output is never in memory:
`moment_form`. Within a run, the gradient of a block's output is masked by its ReLU already where
it is made, so that nobody has to read the output again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._checks import uncast
from ..backends import launch
from . import moment_form
from .batch_norm import Branch, Normalisation, frozen, measured, reported
from .held import hold_backend, same_backend
from .moment_form import Moments, Prologue, affine_of
from .residual_backward import block_backward
from .residual_saved import (
    TENSORS,
    Block,
    Layer,
    Parameters,
    SavedBlock,
    SavedLayer,
    flatten,
    restore,
)


class _Convolved(NamedTuple):
    """A raw convolution output with its batch statistics (empty where they are not taken)."""

    y: Tensor
    mean: Tensor
    var: Tensor


class _Shortcut(NamedTuple):
    """The shortcut as `launch.expand` takes it."""

    tensor: Tensor | None
    pivot: Tensor | None = None
    weight: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    stride: tuple[int, int] = (1, 1)


class ResidualBlocks(torch.autograd.Function):
    """x through `blocks`. Saves x, the output of every block, every raw convolution output but
    those in moment form, and small vectors and matrices.

    `tensors` are the `Parameters` of `Block.all_layers`, block after block. Returns out and what
    `reported` says of every layer in that order. Only out is differentiable.
    """

    @staticmethod
    def forward(ctx, x, blocks: tuple[Block, ...], *tensors):
        hold_backend(ctx)
        passed, kept = [x], []
        statistics: list[Tensor] = []
        first, start = None, 0
        with uncast(x.device.type):
            for index, block in enumerate(blocks):
                parameters = _grouped(tensors[start : start + block.tensors])
                start += block.tensors
                ahead = None
                if index + 1 < len(blocks) and _continues(block, blocks[index + 1], tensors[start]):
                    ahead = tensors[start]
                out, saved, branches, first = _block(passed[-1], block, parameters, first, ahead)
                passed.append(out)
                kept.append(saved)
                for layer, branch in zip(block.all_layers, branches, strict=True):
                    statistics += reported(branch, layer.bn)
        ctx.blocks = blocks
        ctx.counts = [saved.counts for saved in kept]
        ctx.save_for_backward(*passed, *(t for saved in kept for t in flatten(saved)))
        ctx.mark_non_differentiable(*statistics)
        return passed[-1], *statistics

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dout, *_):
        blocks, need = ctx.blocks, ctx.needs_input_grad
        # several launches read it, and a mean's gradient is an expanded one
        dout = dout.contiguous(memory_format=torch.channels_last)
        # a checkpoint hands them out once only
        saved_tensors = ctx.saved_tensors
        passed, rest = saved_tensors[: len(blocks) + 1], saved_tensors[len(blocks) + 1 :]
        kept = []
        for block, counts in zip(blocks, ctx.counts, strict=True):
            saved, rest = restore(block, rest, counts)
            kept.append(saved)
        gradients: list[Tensor | None] = []
        end, masked = len(need), False
        for index in range(len(blocks) - 1, -1, -1):
            if dout is None:  # nothing before this block wants a gradient
                break
            start = end - blocks[index].tensors
            dout, own = block_backward(
                dout, masked, passed[index + 1], passed[index], blocks[index], kept[index],
                any(need[:start]), need[start:end], index > 0,
            )  # fmt: skip
            gradients = own + gradients
            end, masked = start, True
        nothing = [None] * (end - 2)
        return dout, None, *nothing, *gradients


def _grouped(tensors: tuple[Any, ...]) -> list[Parameters]:
    return [Parameters(*tensors[i : i + TENSORS]) for i in range(0, len(tensors), TENSORS)]


def _continues(block: Block, following: Block, weight: Tensor) -> bool:
    """Whether the next block's first convolution can be computed on the tile just produced."""
    geometry, bn = following.layers[0]
    return (
        block.moments
        and bn.training
        and tuple(weight.shape[2:]) == (1, 1)
        and (*geometry.stride, *geometry.padding, geometry.groups) == (1, 1, 0, 0, 1)
    )


def _block(
    x: Tensor,
    block: Block,
    parameters: list[Parameters],
    first: _Convolved | None,
    ahead: Tensor | None,
) -> tuple[Tensor, SavedBlock, list[Branch], _Convolved | None]:
    """(out, what backward reads, branches of all layers, the next block's first convolution).

    `first` is this block's first convolution where the block before has made it, `ahead` the
    weight of the next block's, to be made here.
    """
    layers: list[SavedLayer] = []
    branches: list[Branch] = []
    y, prologue = x, Prologue()
    chain = block.layers[:-1] if block.moments else block.layers
    for layer, own in zip(chain, parameters, strict=False):
        if first is None:
            first = _convolve(y, own, layer, prologue)
        branch = _branch(first, own, layer.bn)
        y, first = first.y, None
        layers.append(SavedLayer(*own[:3], y, branch.mean, branch.invstd))
        branches.append(branch)
        prologue = layers[-1].normalisation
    following = moments = projected = None
    if not block.moments:
        shortcut = None if block.shortcut == "none" else x
        beside = Prologue()
        if block.projection is not None:
            _project(x, block, parameters[-1], layers, branches)
            shortcut, beside = layers[-1].y, layers[-1].normalisation
        out = launch.bn_apply(y, *prologue, shortcut, *beside, block.shortcut_stride, True)
    else:
        own, layer = parameters[len(chain)], block.layers[-1]
        moments, affine, branch = moment_form.forward(y, prologue, *own, (1, 1), layer.bn)
        layers.append(SavedLayer(*own[:3], None, branch.mean, branch.invstd))
        branches.append(branch)
        beside, projected = _shortcut(x, block, parameters[-1], layers, branches)
        operands = (
            y, *prologue, affine.pivot, affine.weight, affine.scale, affine.shift,
            *beside, True,
        )  # fmt: skip
        if ahead is None:
            out = launch.expand(*operands)
        else:
            out, *reduced = launch.expand_reduce(*operands, ahead)
            following = _Convolved(*reduced)
    counts = tuple(branch.count for branch in branches)
    return out, SavedBlock(tuple(layers), moments, projected, counts), branches, following


def _convolve(x: Tensor, own: Parameters, layer: Layer, prologue: Prologue) -> _Convolved:
    return _Convolved(
        *launch.conv_stats(x, own.weight, *layer.geometry, *prologue, layer.bn.training)
    )


def _branch(convolved: _Convolved, own: Parameters, bn: Normalisation) -> Branch:
    if bn.training:
        return measured(convolved.mean, convolved.var, convolved.y, bn)
    return frozen(own.running_mean, own.running_var, convolved.y, bn)


def _project(x, block: Block, own: Parameters, layers: list, branches: list) -> None:
    """Convolve the shortcut, its output in memory; adds its layer and branch."""
    convolved = _convolve(x, own, block.projection, Prologue())
    branch = _branch(convolved, own, block.projection.bn)
    layers.append(SavedLayer(*own[:3], convolved.y, branch.mean, branch.invstd))
    branches.append(branch)


def _shortcut(
    x: Tensor, block: Block, own: Parameters, layers: list, branches: list
) -> tuple[_Shortcut, Moments | None]:
    """The shortcut of a block in moment form; adds the projection's layer and branch, if any."""
    if block.shortcut == "none":
        return _Shortcut(None), None
    if block.projection is None:
        stride = block.shortcut_stride
        return _Shortcut(x, stride=(stride, stride)), None
    geometry, bn = block.projection
    if block.projected_moments:
        moments, affine, branch = moment_form.forward(x, Prologue(), *own, geometry.stride, bn)
        layers.append(SavedLayer(*own[:3], None, branch.mean, branch.invstd))
        branches.append(branch)
        weight, pivot, scale, shift = affine
        return _Shortcut(x, pivot, weight, scale, shift, geometry.stride), moments
    _project(x, block, own, layers, branches)
    scale, shift = affine_of(*layers[-1].normalisation)
    return _Shortcut(layers[-1].y, scale=scale, shift=shift), None
