"""act(bn(y) + shortcut) as one differentiable step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .batch_norm import (
    NOT_REDUCED,
    Join,
    Saved,
    frozen,
    join_backward_arguments,
    join_forward,
    join_reduce,
    launch,
    measured,
    parameter_gradient,
    reported,
)
from .held import hold_backend, same_backend


class BNAct(torch.autograd.Function):
    """out = act(bn(y) + shortcut) for a raw convolution output y [N, C, H, W].

    Saves y, the shortcut where it has a BN of its own, out where a shortcut feeds the ReLU, and
    [C] vectors. Returns out and what `reported` says of both branches; only out is
    differentiable.
    """

    @staticmethod
    def forward(
        ctx, y, weight, bias, running_mean, running_var,
        shortcut, s_weight, s_bias, s_running_mean, s_running_var, join: Join,
    ):  # fmt: skip
        hold_backend(ctx)
        if join.bn.training:
            branch = measured(*launch.bn_stats(y), y, join.bn)
        else:
            branch = frozen(running_mean, running_var, y, join.bn)
        out, s_branch, saved = join_forward(
            y, branch, weight, bias,
            shortcut, s_weight, s_bias, s_running_mean, s_running_var, join,
        )  # fmt: skip
        remember(ctx, saved, (), branch, s_branch, shortcut, s_bias, join)
        return statistics_beside(ctx, out, branch, s_branch, join)

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dout, *_):
        saved = Saved(*ctx.saved_tensors)
        need = ctx.needs_input_grad
        need_dy, need_ds = need[0], need[5]
        reduced = NOT_REDUCED
        if reduction_needed(ctx.join, need_dy or need_ds, need[1:3] + need[6:8]):
            reduced = join_reduce(dout, saved, ctx.counts, ctx.join)
        dy = dshortcut = None
        if need_dy or need_ds:
            dy, dshortcut = launch.bn_backward(
                *join_backward_arguments(
                    dout, saved, reduced, ctx.join, ctx.shortcut_size if need_ds else ()
                )
            )
        return (
            dy if need_dy else None,
            parameter_gradient(reduced.dweight, saved.weight, need[1]),
            parameter_gradient(reduced.dbias, saved.bias, need[2]),
            None, None,
            dshortcut if need_ds else None,
            parameter_gradient(reduced.s_dweight, saved.s_weight, need[6]),
            reduced.dbias.to(ctx.s_bias_dtype) if need[7] else None,
            None, None, None,
        )  # fmt: skip


def reduction_needed(join: Join, need_inputs: bool, need_vectors: tuple[bool, ...]) -> bool:
    """Whether the backward must sum over the batch: for gamma, beta, or measured statistics."""
    measuring = join.bn.training or (join.s_bn is not None and join.s_bn.training)
    return any(need_vectors) or (need_inputs and measuring)


def remember(ctx, saved, more, branch, s_branch, shortcut: Tensor | None, s_bias, join) -> None:
    """Keep on `ctx` what the backward of a join reads: tensors saved, constants as attributes."""
    ctx.save_for_backward(*saved, *more)
    ctx.join = join
    ctx.counts = (branch.count, s_branch.count if s_branch is not None else 0)
    ctx.shortcut_size = () if shortcut is None else tuple(shortcut.shape)
    ctx.s_bias_dtype = None if s_bias is None else s_bias.dtype


def statistics_beside(ctx, out, branch, s_branch, join: Join):
    """out and what `reported` says of both branches."""
    statistics = reported(branch, join.bn)
    if join.s_bn is not None:
        statistics += reported(s_branch, join.s_bn)
    ctx.mark_non_differentiable(*statistics)
    return out, *statistics
