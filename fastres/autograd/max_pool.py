"""Max pooling as one differentiable step."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..backends import launch
from .held import hold_backend, same_backend


class MaxPool2d(torch.autograd.Function):
    """Maxima over windows. Saves one byte per output: the place in the window."""

    @staticmethod
    def forward(ctx, x, kernel_size, stride, padding):
        hold_backend(ctx)
        out, index = launch.max_pool(x, kernel_size, stride, padding)
        ctx.save_for_backward(index)
        ctx.size = tuple(x.shape)
        ctx.window = (kernel_size, stride, padding)
        return out

    @staticmethod
    @once_differentiable
    @same_backend
    def backward(ctx, dout):
        (index,) = ctx.saved_tensors
        return launch.max_pool_backward(dout, index, ctx.size, *ctx.window), None, None, None
