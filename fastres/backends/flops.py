"""The launch operators' products, for `torch.utils.flop_counter.FlopCounterMode`.

A convolution counts as torch counts it, so that a network layer by layer has the same number as
without fastres. A layer in moment form counts the products that are made: those of rows and
weights, moments of K channels over M rows as 2 M K^2, and what follows from moments and weights
alone. Element-wise work counts nothing, as in torch.

Importing torch's counter takes longer than importing fastres, and nobody may ever ask for it: the
formulas are registered right after whoever wants it has imported it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch

from .._imports import after_import

COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def register_when_counting() -> None:
    """Register the formulas as soon as torch's counter is there."""
    after_import(COUNTER, _register)


def _register(counter: ModuleType) -> None:
    for name, formula in _formulas(counter).items():
        operator = getattr(torch.ops.fastres, name)
        if operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)


def _formulas(counter: ModuleType) -> dict[str, Callable[..., int]]:
    """A formula for every operator that makes a product; each takes the operator's arguments, a
    shape in place of each tensor, and the shapes of what it returns."""

    def convolved_back(dout: Shape, x: Shape, weight: Shape, need_dx: bool, need_dw: bool) -> int:
        return counter.conv_backward_flop(
            dout, x, weight, None, None, None, None, False, None, None, [need_dx, need_dw, False],
            out_val=(x, weight, None),
        )  # fmt: skip

    def conv_stats(x, weight, *_, out_shape, **__) -> int:
        return counter.conv_flop_count(x, weight, out_shape[0])

    def conv_bias_act(x, weight, *_, out_shape, **__) -> int:
        return counter.conv_flop_count(x, weight, out_shape)

    def conv_backward(dy, x, weight, *rest, **_) -> int:
        return convolved_back(dy, x, weight, *rest[-2:])

    def conv_bn_backward(dout, *rest, **_) -> int:
        return convolved_back(dout, *rest[16:18], *rest[-2:])

    def chain_backward(dout, *rest, **_) -> int:
        return convolved_back(dout, *rest[9:11], *rest[-2:])

    return {
        "conv_stats": conv_stats,
        "conv_bias_act": conv_bias_act,
        "conv_backward": conv_backward,
        "conv_bn_backward": conv_bn_backward,
        "chain_backward": chain_backward,
        "moments": _moments,
        "moment_statistics": _moment_statistics,
        "moment_gradients": _moment_gradients,
        "moment_batch_gradients": _moment_batch_gradients,
        "expand": _expand,
        "expand_reduce": _expand_reduce,
        "expand_backward_weight": _expand_backward_weight,
        "expand_backward_data": _expand_backward_data,
    }


def _rows(activation: Shape, stride: Shape = (1, 1)) -> int:
    """Rows M of [N, C, H, W] read at every stride-th place."""
    n, _, height, width = activation
    return n * ((height - 1) // stride[0] + 1) * ((width - 1) // stride[1] + 1)


def _product(rows: int, inner: int, columns: int) -> int:
    """[rows, inner] times [inner, columns]."""
    return 2 * rows * inner * columns


def _moments(y: Shape, *rest, **_) -> int:
    return _product(_rows(y, rest[-1]), y[1], y[1])


def _moment_statistics(y: Shape, conv_weight: Shape, *_, **__) -> int:
    outer, inner = conv_weight[:2]
    return _product(outer, inner, inner)


def _moment_gradients(*_, **__) -> int:
    return 0  # products of matrices and vectors only


def _moment_batch_gradients(y: Shape, conv_weight: Shape, *_, **__) -> int:
    outer, inner = conv_weight[:2]
    return 2 * _product(outer, inner, inner)


def _expand(*arguments, out_shape, **_) -> int:
    conv_weight, projection = arguments[6], arguments[11]
    rows = _rows(out_shape)
    total = _product(rows, conv_weight[1], conv_weight[0])
    return total + (0 if projection is None else _product(rows, projection[1], projection[0]))


def _expand_reduce(*arguments, out_shape, **_) -> int:
    following = arguments[-1]
    reduced = _product(_rows(out_shape[0]), following[1], following[0])
    return reduced + _expand(*arguments[:-1], out_shape=out_shape[0])


def _expand_backward_weight(dout: Shape, out: Shape | None, y: Shape, *_, **__) -> int:
    return _product(_rows(dout), y[1], dout[1])


def _expand_backward_data(dout: Shape, out: Shape | None, y: Shape, *rest, **_) -> int:
    mixing = rest[6]
    inner = dout[1] + (0 if mixing is None else y[1])
    return _product(_rows(dout), inner, y[1])
