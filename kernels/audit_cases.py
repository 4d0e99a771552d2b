"""What the audit compiles: the level-1 launchers called with meta tensors of ResNet's shapes.

A maker takes a row of a table and one of its dtypes, calls the operator's launchers once for every
kind of kernel they have, and yields a name for each kind after its launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from . import (
    bn_apply,
    bn_backward,
    bn_backward_reduce,
    bn_stats,
    conv1x1,
    conv3x3,
    conv_bias_act,
    max_pool,
    pad_shortcut,
)

Maker = Callable[[dict[str, Any], str], Iterator[str]]


def product_dtype(name: str) -> tuple[torch.dtype, bool]:
    """(dtype of the operands, whether multiplied in TF32) of a row's dtype."""
    return (torch.float32, True) if name == "tf32" else (getattr(torch, name), False)


def activation(dtype: torch.dtype, channels: int, extent: int = 56, images: int = 256) -> Tensor:
    """A meta activation [images, channels, extent, extent]."""
    return torch.empty(
        (images, channels, extent, extent), dtype=dtype, device="meta",
        memory_format=torch.channels_last,
    )  # fmt: skip


def vector(channels: int, dtype: torch.dtype) -> Tensor:
    """A meta vector [channels] of statistics beside activations of `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.empty(channels, dtype=wide, device="meta")


def _bn_stats(row: dict[str, Any], dtype: str) -> Iterator[str]:
    bn_stats.bn_stats(activation(getattr(torch, dtype), 64, 28), row["config"])
    yield ""


def _max_pool(row: dict[str, Any], dtype: str) -> Iterator[str]:
    y = activation(getattr(torch, dtype), 64, 28)
    window = ((3, 3), (2, 2), (1, 1))
    out, index = max_pool.max_pool(y, *window, row["config"])
    max_pool.max_pool_backward(out, index, y.shape, *window, row["config"])
    yield ""


def _pad_shortcut(row: dict[str, Any], dtype: str) -> Iterator[str]:
    small = activation(getattr(torch, dtype), 32)
    out = pad_shortcut.pad_shortcut(small, 64, 2, row["config"])
    pad_shortcut.pad_shortcut_backward(out, small.shape, 2, row["config"])
    yield ""


def _bn_apply(row: dict[str, Any], dtype: str) -> Iterator[str]:
    torch_dtype = getattr(torch, dtype)
    y, small = activation(torch_dtype, 64, 28), activation(torch_dtype, 32)
    bn = [vector(64, torch_dtype)] * 4
    nothing: list[None] = [None] * 4
    for kind, shortcut, branch, stride in (
        ("none", None, nothing, 1),
        ("identity", y, nothing, 1),
        ("bn", y, bn, 1),
        ("pad", small, nothing, 2),
    ):
        bn_apply.bn_apply(y, *bn, shortcut, *branch, stride, True, row["config"])
        yield kind


def _bn_backward_reduce(row: dict[str, Any], dtype: str) -> Iterator[str]:
    y = activation(getattr(torch, dtype), 64, 28)
    bn = [vector(64, y.dtype)] * 4
    for kind, out, branch in (
        ("none", None, [None] * 3),
        ("identity", y, [None] * 3),
        ("bn", y, [y, *bn[:2]]),
    ):
        bn_backward_reduce.bn_backward_reduce(y, out, y, *bn, *branch, True, row["config"])
        yield kind


def _bn_backward(row: dict[str, Any], dtype: str) -> Iterator[str]:
    torch_dtype = getattr(torch, dtype)
    y, small = activation(torch_dtype, 64, 28), activation(torch_dtype, 32)
    bn = [vector(64, torch_dtype)] * 6
    for kind, out, branch, size, stride in (
        ("none", None, [None] * 5, (), 1),
        ("identity", y, [None] * 5, y.shape, 1),
        ("bn", y, [y, *bn[:4]], y.shape, 1),
        ("pad", y, [None] * 5, small.shape, 2),
    ):
        bn_backward.bn_backward(y, out, y, *bn, *branch, size, stride, True, row["config"])
        yield kind


def _convolution(row: dict[str, Any], dtype: str) -> Iterator[str]:
    """A convolution at the row's shape class, stride one."""
    torch_dtype, tf32 = product_dtype(dtype)
    inner = row["shape"].get("inner", 256)
    outer = row["shape"].get("outer", 256)
    extent = 1 if row["operator"] == "conv1x1" else 3
    module = conv1x1 if extent == 1 else conv3x3
    weight = torch.empty((outer, inner, extent, extent), dtype=torch_dtype, device="meta")
    prologue = [vector(inner, torch_dtype) if row["prologue"] else None] * 4
    module.convolution(
        activation(torch_dtype, inner), weight, [1, 1], [extent // 2] * 2, [1, 1],
        *prologue, True, tf32, row["config"],
    )  # fmt: skip
    yield "prologue" if row["prologue"] else ""


def _conv_bias_act(row: dict[str, Any], dtype: str) -> Iterator[str]:
    """A convolution at the row's shape class, with a shortcut and without one; a projection."""
    torch_dtype, tf32 = product_dtype(dtype)
    inner, outer = row["shape"].get("inner", 256), row["shape"].get("outer", 256)
    extent = isqrt(row["shape"].get("taps", 9))
    weight = torch.empty((outer, inner, extent, extent), dtype=torch_dtype, device="meta")
    bias = torch.empty(outer, dtype=torch_dtype, device="meta")
    relu = row["operator"] == "conv_bias_act"
    ends = [("", None, 1), ("shortcut", activation(torch_dtype, outer), 1)]
    for kind, shortcut, stride in ends if relu else [("stride 2", None, 2)]:
        conv_bias_act.conv_bias_act(
            activation(torch_dtype, inner), weight, bias, shortcut,
            [stride] * 2, [extent // 2] * 2, [1, 1], relu, tf32, row["config"],
        )  # fmt: skip
        yield kind


MAKERS: dict[str, Maker] = {
    "bn_stats": _bn_stats,
    "bn_apply": _bn_apply,
    "bn_backward_reduce": _bn_backward_reduce,
    "bn_backward": _bn_backward,
    "max_pool": _max_pool,
    "pad_shortcut": _pad_shortcut,
    "conv1x1": _convolution,
    "conv3x3": _convolution,
    "conv_bias": _conv_bias_act,
    "conv_bias_act": _conv_bias_act,
}
