"""The launch operators of a bottleneck's end in moment form, on a GPU.

The tables say which kernel serves a shape. What none of ours serves (fp64) is composed of torch's
products by the reference, on the same device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from . import triton_layers as layers


def _served(y: Tensor) -> bool:
    """Whether our kernels take this dtype here; else the reference serves."""
    if y.dtype == torch.bfloat16 and not y.is_cuda and layers.kernel("launch").made():
        return False  # the interpreter's bf16 product is not a product, and it truncates
    return y.dtype != torch.float64


def _chosen(operator: str, y: Tensor, mean: Tensor | None, outer: int, **shape: int):
    """(config, whether in TF32) of our kernel for this operator; None: the reference serves."""
    if not _served(y):
        return None
    tf32 = y.dtype == torch.float32 and layers.uses_tf32()
    choice = layers.kernel("tuned").choose(
        operator, y.device, "tf32" if tf32 else y.dtype, prologue=mean is not None,
        inner=y.shape[1], outer=outer, **shape,
    )  # fmt: skip
    return (choice.config, tf32) if choice.provider == "triton" else None


def moments(y, mean, invstd, weight, bias, pivot, stride):
    chosen = _chosen("moments", y, mean, y.shape[1])
    if chosen is None:
        return reference.moments(y, mean, invstd, weight, bias, pivot, stride)
    config, tf32 = chosen
    return layers.kernel("moments").moments(
        layers.dense(y), mean, invstd, weight, bias, pivot, stride, tf32, config
    )


def _matrix(conv_weight: Tensor) -> Tensor:
    return conv_weight.flatten(1).contiguous()


def moment_statistics(y, conv_weight, s, gram, pivot, weight, bias, rows, eps):
    if not _served(y):
        return reference.moment_statistics(y, conv_weight, s, gram, pivot, weight, bias, rows, eps)
    return layers.kernel("moment_statistics").moment_statistics(
        _matrix(conv_weight), s, gram.contiguous(), pivot, weight, bias, rows, eps, y.dtype
    )


def moment_gradients(
    y, conv_weight, product, sum_g, weight, mean, invstd, pivot, offset, shift
):  # fmt: skip
    if not _served(y):
        return reference.moment_gradients(
            y, conv_weight, product, sum_g, weight, mean, invstd, pivot, offset, shift
        )
    return layers.kernel("moment_gradients").moment_gradients(
        _matrix(conv_weight), product.contiguous(), sum_g, weight, mean, invstd, pivot, offset,
        shift, y.dtype,
    )  # fmt: skip


def moment_batch_gradients(
    y, conv_weight, gain, dmatrix, all_g, all_gy, weight, invstd, pivot, offset, covariance, shift,
    count, rows,
):  # fmt: skip
    if not _served(y):
        return reference.moment_batch_gradients(
            y, conv_weight, gain, dmatrix, all_g, all_gy, weight, invstd, pivot, offset, covariance,
            shift, count, rows,
        )  # fmt: skip
    return layers.kernel("moment_gradients").moment_batch_gradients(
        _matrix(conv_weight), gain.contiguous(), dmatrix.contiguous(), all_g, all_gy, weight,
        invstd, pivot, offset, covariance.contiguous(), shift, count, rows,
    )  # fmt: skip


def _block(
    y, mean, invstd, weight, bias, pivot, conv_weight, scale, shift,
    shortcut, s_pivot, s_conv_weight, s_scale, s_shift, shortcut_stride: Sequence[int], *_,
):  # fmt: skip
    """An expansion's arguments as its kernels take them: activations dense, weights rounded."""
    return layers.kernel("expand").Block(
        layers.dense(y), mean, invstd, weight, bias, pivot, conv_weight.to(y.dtype), scale, shift,
        layers.dense(shortcut), s_pivot,
        None if s_conv_weight is None else s_conv_weight.to(y.dtype), s_scale, s_shift,
        shortcut_stride,
    )  # fmt: skip


def expand(*arguments):
    y, mean, conv_weight, relu = arguments[0], arguments[1], arguments[6], arguments[-1]
    chosen = _chosen("expand", y, mean, conv_weight.shape[0])
    if chosen is None:
        return reference.expand(*arguments)
    config, tf32 = chosen
    return layers.kernel("expand_reduce").expand(_block(*arguments), relu, tf32, config)


def expand_reduce(*arguments):
    *expanding, next_weight = arguments
    y, mean, conv_weight, relu = expanding[0], expanding[1], expanding[6], expanding[-1]
    narrow = next_weight.shape[0]
    chosen = _chosen("expand_reduce", y, mean, conv_weight.shape[0], narrow=narrow)
    kernels = layers.kernel("expand_reduce")
    if chosen is None or not kernels.fits(y.shape[1], narrow, chosen[0]):
        out = expand(*expanding)
        first = ([1, 1], [0, 0], [1, 1], 1, None, None, None, None, True)
        return out, *layers.conv_stats(out, next_weight, *first)
    config, tf32 = chosen
    block = _block(*expanding)
    return kernels.expand_reduce(block, next_weight.to(y.dtype), relu, tf32, config)


def expand_backward_weight(dout, out, y, mean, invstd, weight, bias, pivot, stride):
    chosen = _chosen("expand_backward_weight", y, mean, dout.shape[1])
    if chosen is None:
        return reference.expand_backward_weight(
            dout, out, y, mean, invstd, weight, bias, pivot, stride
        )
    config, tf32 = chosen
    return layers.kernel("expand_backward_weight").expand_backward_weight(
        layers.dense(dout), layers.dense(out), layers.dense(y), mean, invstd, weight, bias,
        pivot, stride, tf32, config,
    )  # fmt: skip


def expand_backward_data(
    dout, out, y, mean, invstd, weight, bias, pivot, gain, mixing, constant, stride
):
    chosen = _chosen("expand_backward_data", y, mean, dout.shape[1])
    if chosen is None:
        return reference.expand_backward_data(
            dout, out, y, mean, invstd, weight, bias, pivot, gain, mixing, constant, stride
        )
    config, tf32 = chosen
    return layers.kernel("expand_backward_data").expand_backward_data(
        layers.dense(dout), layers.dense(out), layers.dense(y), mean, invstd, weight, bias,
        pivot, gain.contiguous(), None if mixing is None else mixing.contiguous(), constant,
        stride, tf32, config,
    )  # fmt: skip
