"""act(bn(conv(x)) + shortcut) as one differentiable step."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
)
from .bn_act import reduction_needed, remember, statistics_beside
from .held import hold_backend, same_backend


class Geometry(NamedTuple):
    """A convolution's geometry, each pair as (height, width)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class ConvBNAct(torch.autograd.Function):
    """out = act(bn(conv(x)) + shortcut); the convolution's statistics come with its output.

    Saves x, y = conv(x) and what BNAct saves; y's gradient is never kept beyond its use.
    Returns what BNAct returns.
    """

    @staticmethod
    def forward(
        ctx, x, conv_weight, weight, bias, running_mean, running_var,
        shortcut, s_weight, s_bias, s_running_mean, s_running_var, geometry: Geometry, join: Join,
    ):  # fmt: skip
        hold_backend(ctx)
        y, mean, var = launch.conv_stats(
            x, conv_weight, *geometry, None, None, None, None, join.bn.training
        )
        if join.bn.training:
            branch = measured(mean, var, y, join.bn)
        else:
            branch = frozen(running_mean, running_var, y, join.bn)
        out, s_branch, saved = join_forward(
            y, branch, weight, bias,
            shortcut, s_weight, s_bias, s_running_mean, s_running_var, join,
        )  # fmt: skip
        remember(ctx, saved, (x, conv_weight), branch, s_branch, shortcut, s_bias, join)
        ctx.geometry = geometry
        return statistics_beside(ctx, out, branch, s_branch, join)

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dout, *_):
        *kept, x, conv_weight = ctx.saved_tensors
        saved = Saved(*kept)
        need = ctx.needs_input_grad
        need_dx, need_dw, need_ds = need[0], need[1], need[6]
        need_inputs = need_dx or need_dw or need_ds
        reduced = NOT_REDUCED
        if reduction_needed(ctx.join, need_inputs, need[2:4] + need[7:9]):
            reduced = join_reduce(dout, saved, ctx.counts, ctx.join)
        dx = dw = dshortcut = None
        if need_inputs:
            dx, dw, dshortcut = launch.conv_bn_backward(
                *join_backward_arguments(
                    dout, saved, reduced, ctx.join, ctx.shortcut_size if need_ds else ()
                ),
                x, conv_weight, *ctx.geometry, need_dx, need_dw,
            )  # fmt: skip
        return (
            dx if need_dx else None,
            dw if need_dw else None,
            parameter_gradient(reduced.dweight, saved.weight, need[2]),
            parameter_gradient(reduced.dbias, saved.bias, need[3]),
            None, None,
            dshortcut if need_ds else None,
            parameter_gradient(reduced.s_dweight, saved.s_weight, need[7]),
            reduced.dbias.to(ctx.s_bias_dtype) if need[8] else None,
            None, None, None, None,
        )  # fmt: skip
