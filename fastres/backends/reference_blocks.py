"""The launch operators of whole blocks in plain PyTorch: the oracle, and the path for any device.

Signatures are those of `block_ops.BLOCK_SCHEMAS`; mathematics: docs/engine.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference_layers as layers
from .fakes import statistics_dtype


def _input(y, mean, invstd, weight, bias, stride=(1, 1)) -> Tensor:
    """z: relu(bn(y)) in y's dtype, or y itself, at every stride-th pixel."""
    y = y[:, :, :: stride[0], :: stride[1]]
    if mean is None:
        return y
    return layers.normalised_relu(y, mean, invstd, weight, bias)


def _wide(activation: Tensor) -> Tensor:
    return activation.to(statistics_dtype(activation.dtype))


def _rows(activation: Tensor) -> Tensor:
    """[N, C, H, W] as a matrix [N*H*W, C]."""
    return activation.permute(0, 2, 3, 1).reshape(-1, activation.shape[1])


def _image(rows: Tensor, n: int, height: int, width: int) -> Tensor:
    """The matrix [N*H*W, C] as a channels_last activation."""
    return rows.reshape(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _masked(dout: Tensor, out: Tensor | None) -> Tensor:
    return dout if out is None else torch.where(out <= 0, torch.zeros_like(dout), dout)


def _product(z: Tensor, weight: Tensor, pivot: Tensor | None) -> Tensor:
    """(z - pivot) W as [M, N] in the statistics dtype, of operands in z's dtype."""
    operand = _rows(z) if pivot is None else (_rows(_wide(z)) - pivot).to(z.dtype)
    matrix = weight.to(z.dtype).flatten(1)
    return _wide(operand) @ _wide(matrix).t()


def moments(y, mean, invstd, weight, bias, pivot, stride):
    z = _input(y, mean, invstd, weight, bias, stride)
    d = _rows(_wide(z)) - pivot
    operand = _wide(d.to(y.dtype))
    return d.sum(0), operand.t() @ operand


def expand(
    y, mean, invstd, weight, bias, pivot, conv_weight, scale, shift,
    shortcut, s_pivot, s_conv_weight, s_scale, s_shift, shortcut_stride, relu,
):  # fmt: skip
    z = _input(y, mean, invstd, weight, bias)
    n, _, height, width = y.shape
    value = _product(z, conv_weight, pivot) * scale + shift
    if s_conv_weight is not None:
        read = _input(shortcut, None, None, None, None, shortcut_stride)
        value = value + (_product(read, s_conv_weight, s_pivot) * s_scale + s_shift)
    elif s_scale is not None:
        value = value + (_rows(_wide(shortcut)) * s_scale + s_shift)
    elif shortcut is not None:
        read = _wide(shortcut[:, :, :: shortcut_stride[0], :: shortcut_stride[1]])
        missing = conv_weight.shape[0] - shortcut.shape[1]
        value = value + _rows(F.pad(read, (0, 0, 0, 0, 0, missing)))
    if relu:
        value = torch.where(value <= 0, torch.zeros_like(value), value)
    return layers.dense(_image(value, n, height, width).to(y.dtype))


def expand_reduce(*arguments):
    out = expand(*arguments[:-1])
    y, mean, var = layers.conv_stats(
        out, arguments[-1], (1, 1), (0, 0), (1, 1), 1, None, None, None, None, True
    )
    return out, y, mean, var


def expand_backward_weight(dout, out, y, mean, invstd, weight, bias, pivot, stride):
    z = _input(y, mean, invstd, weight, bias, stride)
    operand = _wide((_rows(_wide(z)) - pivot).to(y.dtype))
    g = _rows(_wide(_masked(dout, out)))
    return operand.t() @ g, g.sum(0)


def expand_backward_data(
    dout, out, y, mean, invstd, weight, bias, pivot, gain, mixing, constant, stride
):
    n, _, height, width = dout.shape
    g = _rows(_masked(dout, out))
    rows = _wide(g) @ _wide(gain)
    if mixing is not None:
        z = _input(y, mean, invstd, weight, bias, stride)
        operand = _rows(z) if pivot is None else (_rows(_wide(z)) - pivot).to(y.dtype)
        rows = rows + _wide(operand) @ _wide(mixing) + constant
    dz = _image(rows, n, height, width).to(y.dtype)
    if mean is None:
        nothing = y.new_empty(0, dtype=rows.dtype)
        return layers.dense(dz), nothing, nothing.clone()
    return _masked_with_sums(dz, y, mean, invstd, weight, bias)


def _masked_with_sums(dz, y, mean, invstd, weight, bias):
    """dz where relu(bn(y)) let its input through, its column sums, and those times xhat."""
    dz = layers.masked(dz, None, y, mean, invstd, weight, bias, True).to(y.dtype)
    wide, over = _wide(dz), (0, 2, 3)
    return layers.dense(dz), wide.sum(over), (wide * layers.xhat(y, mean, invstd)).sum(over)


def chain_backward(
    dout, out, y, mean, invstd, weight, bias, mean_g, mean_gx, relu, x, conv_weight,
    stride, padding, dilation, groups, pro_mean, pro_invstd, pro_weight, pro_bias,
    residual, residual_mask, residual_stride, mask_by_x, need_dx, need_dw,
):  # fmt: skip
    g = layers.masked(dout, out, y, mean, invstd, weight, bias, relu or out is not None)
    dy = layers.branch_gradient(g, y, mean, invstd, weight, mean_g, mean_gx)
    prologue = (pro_mean, pro_invstd, pro_weight, pro_bias)
    taken = x if pro_mean is None else layers.normalised_relu(x, *prologue)
    dx, dw = layers.conv_backward(
        dy, taken, conv_weight, stride, padding, dilation, groups, need_dx, need_dw
    )
    if pro_mean is not None and need_dx:
        dx, sum_g, sum_gx = _masked_with_sums(dx, x, *prologue)
        return dx, dw, sum_g, sum_gx
    length = 0 if pro_mean is None else x.shape[1]
    sums = [x.new_zeros(length, dtype=statistics_dtype(x.dtype)) for _ in range(2)]
    if need_dx and residual is not None:
        into = _wide(dx)
        g = _wide(_masked(residual, residual_mask))[:, : x.shape[1]]
        into[:, :, :: residual_stride[0], :: residual_stride[1]] += g
        dx = layers.dense(into.to(x.dtype))
    if need_dx and mask_by_x:
        dx = layers.dense(_masked(dx, x))
    return dx, dw, *sums


def bn_max_pool(y, mean, invstd, weight, bias, kernel_size, stride, padding):
    z = layers.normalised_relu(y, mean, invstd, weight, bias)
    return layers.max_pool(z, kernel_size, stride, padding)


def bn_max_pool_backward_reduce(
    dout, index, y, mean, invstd, weight, bias, kernel_size, stride, padding
):
    dz = layers.max_pool_backward(dout, index, y.shape, kernel_size, stride, padding)
    return layers.bn_backward_reduce(
        dz, None, y, mean, invstd, weight, bias, None, None, None, True
    )[:2]


def bn_max_pool_backward(
    dout, index, y, mean, invstd, weight, bias, mean_g, mean_gx, kernel_size, stride, padding
):
    dz = layers.max_pool_backward(dout, index, y.shape, kernel_size, stride, padding)
    return layers.bn_backward(
        dz, None, y, mean, invstd, weight, bias, mean_g, mean_gx,
        None, None, None, None, None, (), 1, True,
    )[0]  # fmt: skip
