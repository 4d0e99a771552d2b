"""A plain convolution as one differentiable step, its output left for a BN that follows."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..backends import launch
from .conv_bn_act import Geometry
from .held import hold_backend, same_backend


class Conv2d(torch.autograd.Function):
    """y = conv(x), channels_last. Saves x and the weight."""

    @staticmethod
    def forward(ctx, x, weight, geometry: Geometry):
        hold_backend(ctx)
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return launch.conv_stats(x, weight, *geometry, None, None, None, None, False)[0]

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        need_dx, need_dw = ctx.needs_input_grad[:2]
        dx, dw = launch.conv_backward(dy, x, weight, *ctx.geometry, need_dx, need_dw)
        return dx if need_dx else None, dw if need_dw else None, None
