"""maxpool(relu(bn(conv(x)))) as one differentiable step: the stem of the ImageNet networks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from ..backends import launch
from .batch_norm import Normalisation, frozen, measured, parameter_gradient
from .conv_bn_act import Geometry
from .held import hold_backend, same_backend
from .moment_form import at_least_one


class Window(NamedTuple):
    """Geometry of a pooling, each as (height, width)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


class ConvBNMaxPool(torch.autograd.Function):
    """The activation between the ReLU and the pooling is never in memory, nor is its gradient.

    Saves x, y = conv(x), one byte per output (the place in the window) and [C] vectors. Returns
    (out, mean, var, count), the last three None where nothing was measured, count except over
    several ranks.
    """

    @staticmethod
    def forward(
        ctx, x, conv_weight, weight, bias, running_mean, running_var,
        geometry: Geometry, bn: Normalisation, window: Window,
    ):  # fmt: skip
        hold_backend(ctx)
        ctx.set_materialize_grads(False)  # of statistics, which have none
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
        if not bn.training:
            return out, None, None, None
        count = branch.count if isinstance(branch.count, torch.Tensor) else None
        ctx.mark_non_differentiable(*(t for t in (branch.mean, branch.var, count) if t is not None))
        return out, branch.mean, branch.var, count

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dout, *_):
        x, conv_weight, weight, bias, y, index, mean, invstd = ctx.saved_tensors
        need_dx, need_dw, need_gamma, need_beta = ctx.needs_input_grad[:4]
        normalisation = (mean, invstd, weight, bias)
        dgamma = dbeta = mean_g = mean_gx = dx = dw = None
        below = need_dx or need_dw
        if need_gamma or need_beta or (below and ctx.bn.training):
            dbeta, dgamma = launch.bn_max_pool_backward_reduce(
                dout, index, y, *normalisation, *ctx.window
            )
        if below:
            if ctx.bn.training:
                both = torch.cat([dbeta, dgamma])
                if ctx.bn.process_group is not None:
                    dist.all_reduce(both, group=ctx.bn.process_group)
                mean_g, mean_gx = (both / at_least_one(ctx.count)).chunk(2)
            dy = launch.bn_max_pool_backward(
                dout, index, y, *normalisation, mean_g, mean_gx, *ctx.window
            )
            dx, dw = launch.conv_backward(dy, x, conv_weight, *ctx.geometry, need_dx, need_dw)
        return (
            dx if need_dx else None,
            dw if need_dw else None,
            parameter_gradient(dgamma, weight, need_gamma),
            parameter_gradient(dbeta, bias, need_beta),
            None, None, None, None, None,
        )  # fmt: skip
