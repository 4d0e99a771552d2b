"""The launch operators of single layers on a GPU: Triton kernels, cuDNN's convolutions where they
are faster.

Signatures are those of `ops.SCHEMAS`; kernels and formulas: docs/kernels.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .. import extension
from .fakes import statistics_dtype
from .reference_layers import conv_backward


@cache
def kernel(name: str) -> ModuleType:
    # imported on first use: `import fastres` must not import Triton
    return importlib.import_module(f"fastres.kernels.{name}")


def config(operator: str, anchor: Tensor) -> dict[str, int]:
    return kernel("tuned").choose(operator, anchor.device, anchor.dtype).config


def dense(activation: Tensor | None) -> Tensor | None:
    return kernel("launch").dense(activation)


def uses_tf32() -> bool:
    """Whether torch lets an fp32 convolution multiply in TF32."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is None:  # torch before 2.9 has the one switch
        return torch.backends.cudnn.allow_tf32
    return conv.fp32_precision == "tf32"


def _convolution(x: Tensor, weight: Tensor, padding: Sequence[int], groups: int, prologue: bool):
    """(kernel module, config, whether in TF32) that computes this convolution; None: ATen does."""
    if groups != 1 or x.dtype == torch.float64 or x.numel() == 0:
        return None
    if x.dtype == torch.bfloat16 and not x.is_cuda and kernel("launch").made():
        return None  # the interpreter's bf16 product is not a product
    pointwise = tuple(weight.shape[2:]) == (1, 1) and tuple(padding) == (0, 0)
    operator = "conv1x1" if pointwise else "conv3x3"
    tf32 = x.dtype == torch.float32 and uses_tf32()
    choice = kernel("tuned").choose(
        operator, x.device, "tf32" if tf32 else x.dtype, prologue=prologue,
        inner=weight.shape[1], outer=weight.shape[0],
    )  # fmt: skip
    return (kernel(operator), choice.config, tf32) if choice.provider == "triton" else None


def conv_stats(
    x, weight, stride, padding, dilation, groups,
    pro_mean, pro_invstd, pro_weight, pro_bias, stats,
):  # fmt: skip
    x, weight = dense(x), weight.to(x.dtype)
    prologue = pro_mean is not None
    fused = _convolution(x, weight, padding, groups, prologue)
    if fused is not None:
        module, config, tf32 = fused
        return module.convolution(
            x, weight, stride, padding, dilation,
            pro_mean, pro_invstd, pro_weight, pro_bias, stats, tf32, config,
        )  # fmt: skip
    if prologue:
        x = bn_apply(
            x, pro_mean, pro_invstd, pro_weight, pro_bias, None, None, None, None, None, 1, True
        )
    y = dense(
        torch.ops.aten.convolution(
            x, weight, None, stride, padding, dilation, False, [0, 0], groups
        )
    )
    if stats:
        return y, *bn_stats(y)
    return y, *(y.new_empty(0, dtype=statistics_dtype(y.dtype)) for _ in range(2))


def _native(anchor: Tensor, name: str):
    """The CUDA C++ operator, where the extension can be had and serves this tensor, else None."""
    if not anchor.is_cuda or anchor.dtype == torch.float64 or not extension.has_cuda():
        return None
    return getattr(torch.ops.fastres_native, name)


def bn_stats(y):
    return kernel("bn_stats").bn_stats(dense(y), config("bn_stats", y))


def bn_apply(
    y, mean, invstd, weight, bias,
    shortcut, s_mean, s_invstd, s_weight, s_bias, shortcut_stride, relu,
):  # fmt: skip
    module = kernel("bn_apply")
    if module.shortcut_kind(y, shortcut, s_mean, shortcut_stride) == "pad":
        native = _native(y, "bn_apply_pad")
        if native is not None:
            return native(
                dense(y), mean, invstd, weight, bias, dense(shortcut), shortcut_stride, relu
            )
    return module.bn_apply(
        dense(y), mean, invstd, weight, bias, dense(shortcut),
        s_mean, s_invstd, s_weight, s_bias, shortcut_stride, relu, config("bn_apply", y),
    )  # fmt: skip


def bn_backward_reduce(dout, out, y, mean, invstd, weight, bias, shortcut, s_mean, s_invstd, relu):
    return kernel("bn_backward_reduce").bn_backward_reduce(
        dense(dout), dense(out), dense(y), mean, invstd, weight, bias,
        dense(shortcut), s_mean, s_invstd, relu, config("bn_backward_reduce", y),
    )  # fmt: skip


def bn_backward(
    dout, out, y, mean, invstd, weight, bias, mean_g, mean_gx,
    shortcut, s_mean, s_invstd, s_weight, mean_gx_s, shortcut_size, shortcut_stride, relu,
):  # fmt: skip
    module = kernel("bn_backward")
    if module.gradient_kind(y, s_mean, shortcut_size, shortcut_stride) == "pad":
        native = _native(y, "bn_backward_pad")
        if native is not None:
            return native(
                dense(dout), dense(out), dense(y), mean, invstd, weight, mean_g, mean_gx,
                shortcut_size, shortcut_stride, relu,
            )  # fmt: skip
    return module.bn_backward(
        dense(dout), dense(out), dense(y), mean, invstd, weight, bias, mean_g, mean_gx,
        dense(shortcut), s_mean, s_invstd, s_weight, mean_gx_s, shortcut_size, shortcut_stride,
        relu, config("bn_backward", y),
    )  # fmt: skip


def conv_bn_backward(*arguments):
    *normalising, x, weight, stride, padding, dilation, groups, need_dx, need_dw = arguments
    dy, dshortcut = bn_backward(*normalising)
    dx, dw = conv_backward(dy, x, weight, stride, padding, dilation, groups, need_dx, need_dw)
    return dx, dw, dshortcut


def max_pool(x, kernel_size, stride, padding):
    return kernel("max_pool").max_pool(
        dense(x), kernel_size, stride, padding, config("max_pool", x)
    )


def max_pool_backward(dout, index, size, kernel_size, stride, padding):
    return kernel("max_pool").max_pool_backward(
        dense(dout), dense(index), size, kernel_size, stride, padding, config("max_pool", dout)
    )


def pad_shortcut(x, out_channels, stride):
    native = _native(x, "pad_shortcut")
    if native is not None:
        return native(dense(x), out_channels, stride)
    return kernel("pad_shortcut").pad_shortcut(
        dense(x), out_channels, stride, config("pad_shortcut", x)
    )


def pad_shortcut_backward(dout, size, stride):
    native = _native(dout, "pad_shortcut_backward")
    if native is not None:
        return native(dense(dout), size, stride)
    return kernel("pad_shortcut").pad_shortcut_backward(
        dense(dout), size, stride, config("pad_shortcut", dout)
    )
