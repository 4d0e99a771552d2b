"""maxpool(relu(bn(conv(x)))) as one differentiable step: the stem of the ImageNet networks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ..backends import launch
from .batch_norm import Normalisation, frozen, means, measured, parameter_gradient, reported
from .conv_bn_act import Geometry
from .held import hold_backend, same_backend


class Window(NamedTuple):
    """Geometry of a pooling, each as (height, width)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


class ConvBNMaxPool(torch.autograd.Function):
    """The activation between the ReLU and the pooling is never in memory, nor is its gradient.

    Saves x, y = conv(x), one byte per output (the place in the window) and [C] vectors. Returns
    out and what `reported` says.
    """

    @staticmethod
    def forward(
        ctx, x, conv_weight, weight, bias, running_mean, running_var,
        geometry: Geometry, bn: Normalisation, window: Window,
    ):  # fmt: skip
        hold_backend(ctx)
        y, mean, var = launch.conv_stats(
            x, conv_weight, *geometry, None, None, None, None, bn.training
        )
        if bn.training:
            branch = measured(mean, var, y, bn)
        else:
            branch = frozen(running_mean, running_var, y, bn)
        out, index = launch.bn_max_pool(y, branch.mean, branch.invstd, weight, bias, *window)
        ctx.save_for_backward(x, conv_weight, weight, bias, y, index, branch.mean, branch.invstd)
        ctx.geometry, ctx.bn, ctx.window, ctx.count = geometry, bn, window, branch.count
        statistics = reported(branch, bn)
        ctx.mark_non_differentiable(*statistics)
        return out, *statistics

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dout, *_):
        x, conv_weight, weight, bias, y, index, mean, invstd = ctx.saved_tensors
        need_dx, need_dw, need_gamma, need_beta = ctx.needs_input_grad[:4]
        normalisation = (mean, invstd, weight, bias)
        sums = dx = dw = None
        below = need_dx or need_dw
        if need_gamma or need_beta or (below and ctx.bn.training):
            sums = launch.bn_max_pool_backward_reduce(dout, index, y, *normalisation, *ctx.window)
        if below:
            dy = launch.bn_max_pool_backward(
                dout, index, y, *normalisation, *means(sums, ctx.count, ctx.bn), *ctx.window
            )
            dx, dw = launch.conv_backward(dy, x, conv_weight, *ctx.geometry, need_dx, need_dw)
        return (
            dx if need_dx else None,
            dw if need_dw else None,
            parameter_gradient(sums[1] if sums else None, weight, need_gamma),
            parameter_gradient(sums[0] if sums else None, bias, need_beta),
            None, None, None, None, None,
        )  # fmt: skip
