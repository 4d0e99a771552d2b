"""What the audit compiles of the backward kernels of a link and of the stem (see audit_cases)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import (
    bn_max_pool,
    bn_max_pool_backward,
    chain_end,
    conv3x3_backward_data,
    conv3x3_backward_weight,
    reduce_backward,
)
from .audit_cases import Maker, activation, product_dtype, vector
from .chain import Join, Link

_WINDOW = ((3, 3), (2, 2), (1, 1))
# channels of x for one of y in a bottleneck, where the row does not say
_FOUR_TIMES = 4


def _link(dtype: torch.dtype, outer: int, stored: bool) -> Link:
    """A link with `outer` channels, or the dy of one that is stored."""
    y = activation(dtype, outer, 28)
    if stored:
        return Link(y, *[None] * 8)
    return Link(y, None, y, *[vector(outer, dtype)] * 6)


def _joins(dtype: torch.dtype, channels: int) -> Iterator[tuple[str, Join]]:
    """Every kind of end of a dx without a prologue: those of a run of blocks, then the others."""
    same, strided = activation(dtype, channels, 28), activation(dtype, channels, 14)
    yield "joined", Join(same, None, (1, 1), True)
    yield "plain", Join(None, None, (1, 1), False)
    yield "residual-mask", Join(same, same, (1, 1), True)
    yield "strided", Join(strided, None, (2, 2), True)


def _weight(dtype: torch.dtype, outer: int, inner: int, extent: int) -> Tensor:
    return torch.empty((outer, inner, extent, extent), dtype=dtype, device="meta")


def _conv1x1_backward(row: dict[str, Any], name: str) -> Iterator[str]:
    """Both gradients of the bottleneck's first convolution."""
    dtype, tf32 = product_dtype(name)
    outer, stored = row["shape"]["outer"], bool(row["config"].get("stored"))
    x = activation(dtype, row["shape"].get("inner", _FOUR_TIMES * outer), 28)
    weight = _weight(dtype, outer, x.shape[1], 1)
    for kind, join in _joins(dtype, x.shape[1]):
        reduce_backward.reduce_backward(
            _link(dtype, outer, stored), not stored, x, weight, join, True, True, tf32,
            row["config"],
        )  # fmt: skip
        yield kind


def _by_direction(row: dict[str, Any], name: str) -> Iterator[str]:
    """One gradient of a convolution at the row's shape class."""
    dtype, tf32 = product_dtype(name)
    config, shape = row["config"], row["shape"]
    outer = shape.get("outer", 64)
    extent = 1 if shape["taps"] == 1 else 3
    x = activation(dtype, shape.get("inner", outer if extent > 1 else _FOUR_TIMES * outer), 28)
    convolution = (_weight(dtype, outer, x.shape[1], extent), (1, 1), (extent // 2,) * 2, (1, 1))
    stored = bool(config.get("stored"))
    link = _link(dtype, outer, stored)
    prologue = (*[vector(x.shape[1], dtype)] * 4,) if row["prologue"] else None
    if row["operator"] == "conv_backward_weight":
        conv3x3_backward_weight.backward_weight(
            link, not stored, x, *convolution, prologue, tf32, config
        )
        yield "prologue" if prologue else ""
        return
    joins = [("prologue", Join(None, None, (1, 1), False))]
    for kind, join in joins if prologue else _joins(dtype, x.shape[1]):
        conv3x3_backward_data.backward_data(
            link, not stored, x, *convolution, prologue, join, tf32, config
        )
        yield kind


def _chain_join(row: dict[str, Any], name: str) -> Iterator[str]:
    x = activation(getattr(torch, name), 64, 28)
    for kind, join in _joins(x.dtype, 64):
        chain_end.chain_join(x, x, join, row["config"])
        yield kind


def _chain_mask(row: dict[str, Any], name: str) -> Iterator[str]:
    x = activation(getattr(torch, name), 64, 28)
    chain_end.chain_mask(x, x, *[vector(64, x.dtype)] * 4, row["config"])
    yield ""


def _stem(row: dict[str, Any], name: str) -> Iterator[str]:
    y = activation(getattr(torch, name), 64, 112)
    dout = activation(y.dtype, 64, 56)
    index = dout.to(torch.uint8)
    bn = [vector(64, y.dtype)] * 4
    if row["operator"] == "bn_max_pool":
        bn_max_pool.bn_max_pool(y, *bn, *_WINDOW, row["config"])
        yield ""
    elif row["operator"] == "bn_max_pool_backward_reduce":
        bn_max_pool_backward.bn_max_pool_backward_reduce(
            dout, index, y, *bn, *_WINDOW, row["config"]
        )
        yield ""
    else:
        for kind, means in (("", bn[:2]), ("frozen", [None, None])):
            bn_max_pool_backward.bn_max_pool_backward(
                dout, index, y, *bn, *means, *_WINDOW, row["config"]
            )
            yield kind


MAKERS: dict[str, Maker] = {
    "conv1x1_backward": _conv1x1_backward,
    "conv_backward_data": _by_direction,
    "conv_backward_weight": _by_direction,
    "chain_join": _chain_join,
    "chain_mask": _chain_mask,
    "bn_max_pool": _stem,
    "bn_max_pool_backward_reduce": _stem,
    "bn_max_pool_backward": _stem,
}
