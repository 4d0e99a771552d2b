"""What the audit compiles of a bottleneck's end in moment form; makers as in audit_cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import (
    expand,
    expand_backward_data,
    expand_backward_weight,
    expand_reduce,
    moment_gradients,
    moment_statistics,
    moments,
)
from .audit_cases import Maker, activation, product_dtype, vector

_EXTENT = 28


def _weight(dtype: torch.dtype, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def _norm(dtype: torch.dtype, channels: int, wanted: bool) -> list[Tensor | None]:
    return [vector(channels, dtype) if wanted else None] * 4


def _moments(row: dict[str, Any], name: str) -> Iterator[str]:
    dtype, tf32 = product_dtype(name)
    inner = row["shape"]["inner"]
    for kind, bn, stride in (("bn", True, 1), ("strided", False, 2)):
        moments.moments(
            activation(dtype, inner, _EXTENT), *_norm(dtype, inner, bn), vector(inner, dtype),
            [stride] * 2, tf32, row["config"],
        )  # fmt: skip
        yield kind


def _block(kind: str, dtype: torch.dtype, inner: int, outer: int) -> expand.Block:
    """An expansion behind a BN with this kind of shortcut, at the sizes of a ResNet's stage."""
    wide, vectors = dtype == torch.float32, vector(outer, dtype)
    shortcut = pivot = weight = scale = None
    stride = 2 if kind == "pad" or (kind == "projection" and inner > 64) else 1
    if kind == "projection":
        channels = 64 if inner == 64 else 2 * inner
        shortcut = activation(dtype, channels, stride * _EXTENT)
        pivot = vector(channels, dtype) if wide else None
        weight, scale = _weight(dtype, outer, channels, 1, 1), vectors
    elif kind == "pad":
        shortcut = activation(dtype, outer // 2, stride * _EXTENT)
    elif kind != "none":
        shortcut = activation(dtype, outer, _EXTENT)
        scale = vectors if kind == "affine" else None
    return expand.Block(
        activation(dtype, inner, _EXTENT), *_norm(dtype, inner, True),
        vector(inner, dtype) if wide else None, _weight(dtype, outer, inner, 1, 1), vectors,
        vectors, shortcut, pivot, weight, scale, scale, [stride] * 2,
    )  # fmt: skip


def _expand(row: dict[str, Any], name: str) -> Iterator[str]:
    dtype, tf32 = product_dtype(name)
    for kind in ("none", "identity", "pad", "affine", "projection"):
        block = _block(kind, dtype, row["shape"]["inner"], row["shape"]["outer"])
        expand_reduce.expand(block, True, tf32, row["config"])
        yield kind
    yield from _statistics(row, dtype)


def _statistics(row: dict[str, Any], dtype: torch.dtype) -> Iterator[str]:
    inner, outer = row["shape"]["inner"], row["shape"]["outer"]
    narrow, wide = vector(inner, dtype), vector(outer, dtype)
    moment_statistics.moment_statistics(
        _weight(dtype, outer, inner), narrow, _weight(torch.float32, inner, inner), narrow,
        wide, wide, _EXTENT**2, 1e-5, dtype,
    )  # fmt: skip
    yield "statistics"


def _expand_reduce(row: dict[str, Any], name: str) -> Iterator[str]:
    dtype, tf32 = product_dtype(name)
    inner, outer, narrow = (row["shape"][key] for key in ("inner", "outer", "narrow"))
    for kind in ("identity", "projection"):
        block = _block(kind, dtype, inner, outer)
        following = _weight(dtype, narrow, outer, 1, 1)
        expand_reduce.expand_reduce(block, following, True, tf32, row["config"])
        yield kind


def _gradients(row: dict[str, Any], name: str) -> Iterator[tuple[str, list, int]]:
    """(kind, dout to the BN's bias, stride): of a run's inner block, its last one, a projection."""
    dtype, _ = product_dtype(name)
    inner, outer = row["shape"]["inner"], row["shape"]["outer"]
    dout = activation(dtype, outer, _EXTENT)
    for kind, bn, stride in (("bn", True, 1), ("bn out", True, 1), ("strided", False, 2)):
        out = dout if kind == "bn out" else None
        y = activation(dtype, inner, stride * _EXTENT)
        yield kind, [dout, out, y, *_norm(dtype, inner, bn)], stride


def _backward_weight(row: dict[str, Any], name: str) -> Iterator[str]:
    dtype, tf32 = product_dtype(name)
    pivot = vector(row["shape"]["inner"], dtype)
    for kind, inputs, stride in _gradients(row, name):
        expand_backward_weight.expand_backward_weight(
            *inputs, pivot, [stride] * 2, tf32, row["config"]
        )
        yield kind
    yield from _moment_gradients(row, dtype)


def _moment_gradients(row: dict[str, Any], dtype: torch.dtype) -> Iterator[str]:
    """Of one rank, of several, and with frozen statistics; the weight is kept in fp32."""
    inner, outer = row["shape"]["inner"], row["shape"]["outer"]
    narrow, wide = vector(inner, dtype), vector(outer, dtype)
    weight, product = (_weight(torch.float32, *sizes) for sizes in ((outer, inner), (inner, outer)))
    square, one = _weight(torch.float32, inner, inner), torch.empty((), device="meta")
    for kind, offset, shift, count in (
        ("one rank", narrow, None, None),
        ("ranks", narrow, wide, one),
        ("frozen", None, None, None),
    ):
        _, gain, dmatrix, _ = moment_gradients.moment_gradients(
            weight, product, wide, wide, wide, wide, narrow, offset, shift, dtype
        )
        if offset is not None:
            moment_gradients.moment_batch_gradients(
                weight, gain, dmatrix, wide, wide, wide, wide, narrow, offset, square, shift, count,
                _EXTENT**2,
            )  # fmt: skip
        yield kind


def _backward_data(row: dict[str, Any], name: str) -> Iterator[str]:
    dtype, tf32 = product_dtype(name)
    inner, outer = row["shape"]["inner"], row["shape"]["outer"]
    pivot = vector(inner, dtype) if dtype == torch.float32 else None
    products = [_weight(dtype, outer, inner), _weight(dtype, inner, inner), vector(inner, dtype)]
    for kind, inputs, stride in _gradients(row, name):
        expand_backward_data.expand_backward_data(
            *inputs, pivot, *products, [stride] * 2, tf32, row["config"]
        )
        yield kind


MAKERS: dict[str, Maker] = {
    "moments": _moments,
    "expand": _expand,
    "expand_reduce": _expand_reduce,
    "expand_backward_weight": _backward_weight,
    "expand_backward_data": _backward_data,
}
