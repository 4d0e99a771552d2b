"""The launch operators of single layers in plain PyTorch.

Signatures are those of `ops.SCHEMAS`; design and formulas: docs/operators.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .fakes import statistics_dtype


def _channel(vector: Tensor | None, like: Tensor) -> Tensor | None:
    return None if vector is None else vector.to(like.dtype).view(1, -1, 1, 1)


def _wide(activation: Tensor) -> Tensor:
    return activation.to(statistics_dtype(activation.dtype))


def dense(activation: Tensor) -> Tensor:
    return activation.contiguous(memory_format=torch.channels_last)


def _normalise(y, mean, invstd, weight, bias) -> Tensor:
    """(y - mean) * (invstd * weight) + bias, in the statistics' dtype."""
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    value = (_wide(y) - _channel(mean, mean)) * _channel(scale, mean)
    return value if bias is None else value + _channel(bias, mean)


def _relu(value: Tensor) -> Tensor:
    return torch.where(value <= 0, torch.zeros_like(value), value)


def normalised_relu(y, mean, invstd, weight, bias) -> Tensor:
    """relu(bn(y)) in y's dtype."""
    return dense(_relu(_normalise(y, mean, invstd, weight, bias)).to(y.dtype))


def conv_stats(
    x, weight, stride, padding, dilation, groups,
    pro_mean, pro_invstd, pro_weight, pro_bias, stats,
):  # fmt: skip
    if pro_mean is not None:
        x = normalised_relu(x, pro_mean, pro_invstd, pro_weight, pro_bias)
    y = dense(F.conv2d(dense(x), weight.to(x.dtype), None, stride, padding, dilation, groups))
    if not stats:
        nothing = y.new_empty(0, dtype=statistics_dtype(y.dtype))
        return y, nothing, nothing.clone()
    return y, *bn_stats(y)


def conv_bias_act(x, weight, bias, shortcut, stride, padding, dilation, groups, relu):
    bias = None if bias is None else bias.to(x.dtype)
    out = F.conv2d(dense(x), weight.to(x.dtype), bias, stride, padding, dilation, groups)
    out = dense(out)
    if shortcut is not None:
        out += shortcut
    return out.relu_() if relu else out


def bn_stats(y):
    if y.numel() == 0:  # the variance of nothing would be NaN
        zeros = y.new_zeros(y.shape[1], dtype=statistics_dtype(y.dtype))
        return zeros, zeros.clone()
    var, mean = torch.var_mean(_wide(y), dim=(0, 2, 3), correction=0)
    return mean, var


def bn_apply(
    y, mean, invstd, weight, bias,
    shortcut, s_mean, s_invstd, s_weight, s_bias, shortcut_stride, relu,
):  # fmt: skip
    value = _normalise(y, mean, invstd, weight, bias)
    if s_mean is not None:
        value = value + _normalise(shortcut, s_mean, s_invstd, s_weight, s_bias)
    elif shortcut is not None:
        value = value + _wide(pad_shortcut(shortcut, y.shape[1], shortcut_stride))
    return dense((_relu(value) if relu else value).to(y.dtype))


def masked(dout, out, y, mean, invstd, weight, bias, relu) -> Tensor:
    """dout where the forward's ReLU let its input through, in the statistics' dtype."""
    gradient = _wide(dout)
    if not relu:
        return gradient
    if out is None:
        out = _normalise(y, mean, invstd, weight, bias)
    return torch.where(out <= 0, torch.zeros_like(gradient), gradient)


def xhat(y, mean, invstd) -> Tensor:
    return (_wide(y) - _channel(mean, mean)) * _channel(invstd, mean)


def bn_backward_reduce(dout, out, y, mean, invstd, weight, bias, shortcut, s_mean, s_invstd, relu):
    g = masked(dout, out, y, mean, invstd, weight, bias, relu)
    over = (0, 2, 3)
    sum_gx_s = mean.new_empty(0)
    if s_mean is not None:
        sum_gx_s = (g * xhat(shortcut, s_mean, s_invstd)).sum(over)
    return g.sum(over), (g * xhat(y, mean, invstd)).sum(over), sum_gx_s


def branch_gradient(g, y, mean, invstd, weight, mean_g, mean_gx) -> Tensor:
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    if mean_gx is not None:
        g = g - _channel(mean_g, mean) - xhat(y, mean, invstd) * _channel(mean_gx, mean)
    return dense((g * _channel(scale, mean)).to(y.dtype))


def bn_backward(
    dout, out, y, mean, invstd, weight, bias, mean_g, mean_gx,
    shortcut, s_mean, s_invstd, s_weight, mean_gx_s, shortcut_size, shortcut_stride, relu,
):  # fmt: skip
    g = masked(dout, out, y, mean, invstd, weight, bias, relu)
    dy = branch_gradient(g, y, mean, invstd, weight, mean_g, mean_gx)
    if not len(shortcut_size):
        return dy, y.new_empty(0)
    if s_mean is not None:
        return dy, branch_gradient(g, shortcut, s_mean, s_invstd, s_weight, mean_g, mean_gx_s)
    return dy, pad_shortcut_backward(g.to(y.dtype), shortcut_size, shortcut_stride)


def conv_backward(dy, x, weight, stride, padding, dilation, groups, need_dx, need_dw):
    nothing = x.new_empty(0), weight.new_empty(0)
    if not (need_dx or need_dw):
        return nothing
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dense(dy), dense(x), weight.to(x.dtype), None, stride, padding, dilation, False, [0, 0],
        groups, [need_dx, need_dw, False],
    )  # fmt: skip
    # an optimiser pairs the gradient with the weight, whose dtype may be wider than x's
    if need_dw and (dw.stride() != weight.stride() or dw.dtype != weight.dtype):
        dw = torch.empty_like(weight).copy_(dw)
    return dense(dx) if need_dx else nothing[0], dw if need_dw else nothing[1]


def conv_bn_backward(*arguments):
    *normalising, x, weight, stride, padding, dilation, groups, need_dx, need_dw = arguments
    dy, dshortcut = bn_backward(*normalising)
    dx, dw = conv_backward(dy, x, weight, stride, padding, dilation, groups, need_dx, need_dw)
    return dx, dw, dshortcut


def max_pool(x, kernel_size, stride, padding):
    """The maxima, and the place in its window that each came from, counted row by row."""
    x = dense(x)
    out, pixel = F.max_pool2d(x, kernel_size, stride, padding, return_indices=True)
    rows, columns = _window_starts(out, stride, padding)
    width = x.shape[3]
    row = torch.div(pixel, width, rounding_mode="floor") - rows
    place = row * kernel_size[1] + (pixel % width - columns)
    return dense(out), dense(place.to(torch.uint8))


def max_pool_backward(dout, index, size, kernel_size, stride, padding):
    rows, columns = _window_starts(dout, stride, padding)
    row = rows + torch.div(index, kernel_size[1], rounding_mode="floor")
    pixel = (row * size[3] + columns + index % kernel_size[1]).long()
    dx = dout.new_zeros((*size[:2], size[2] * size[3]))
    dx.scatter_add_(2, pixel.flatten(2), dout.flatten(2))
    return dense(dx.view(tuple(size)))


def _window_starts(out, stride, padding):
    """First row of each window, as a column vector, and first column."""
    rows = torch.arange(out.shape[2], device=out.device) * stride[0] - padding[0]
    columns = torch.arange(out.shape[3], device=out.device) * stride[1] - padding[1]
    return rows.view(-1, 1), columns


def pad_shortcut(x, out_channels, stride):
    out = x[:, :, ::stride, ::stride]
    # a copy even where nothing changes: an operator may not return its argument
    return dense(F.pad(out, (0, 0, 0, 0, 0, out_channels - x.shape[1]))).clone()


def pad_shortcut_backward(dout, size, stride):
    dx = torch.zeros(size, dtype=dout.dtype, device=dout.device).contiguous(
        memory_format=torch.channels_last
    )
    dx[:, :, ::stride, ::stride] = dout[:, : size[1]]
    return dx
