"""The least bytes and the operations of an operator, and what a device copies and multiplies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .cases import ACTIVATIONS, CONVOLUTIONS
from .timing import Clock, clock_for


@dataclass(frozen=True)
class Cost:
    """Bytes moved if every tensor is read or written once a pass, and multiply-adds times two."""

    bytes: int
    flops: int


def join_cost(kind: str | None, layer: str, batch: int, width: int) -> Cost:
    """Forward and backward of bn_act (kind None) or bn_add_act; `width` bytes an element.

    Forward reads y and the shortcut and writes out; backward reads dout, y and, for kind bn, the
    shortcut, the mask (out, where there is a shortcut), and writes dy and the shortcut's gradient.
    Batch statistics need a second pass over y (and over dout), which a cache may serve: it is not
    counted, so a fraction of 1 is out of reach.
    """
    channels, size = ACTIVATIONS[layer]
    y = batch * channels * size * size * width
    # option A reads every fourth place of twice the size both ways: the lines are shared, so all
    # of it is counted
    shortcut = {None: 0, "identity": y, "bn": y, "pad": 2 * y}[kind]
    forward = 2 * y + shortcut
    backward = 3 * y + (y if kind else 0) + shortcut + (y if kind == "bn" else 0)
    return Cost(forward + backward, 0)


def convolution_cost(layer: str, batch: int, width: int) -> Cost:
    """Forward and backward of conv_bn_act.

    Forward reads x and the weights, writes y and z; backward reads dz, y, x and the weights, and
    writes dx (except for images) and dw. Three products: y, dx, dw.
    """
    c_in, c_out, size, kernel, stride = CONVOLUTIONS[layer]
    out = (size - 1) // stride + 1
    x = batch * c_in * size * size * width
    y = batch * c_out * out * out * width
    w = c_in * c_out * kernel * kernel * width
    images = c_in == 3
    moved = (x + w + 2 * y) + (2 * y + x + w + (0 if images else x) + w)
    product = 2 * batch * out * out * c_out * c_in * kernel * kernel
    return Cost(moved, product * (2 if images else 3))


def copy_bandwidth(device: torch.device, nbytes: int, repeats: int = 10) -> float:
    """Bytes read plus bytes written per second by a copy of `nbytes`, the best of `repeats`."""
    source = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _best(lambda: target.copy_(source), clock_for(device), repeats)


def product_rate(device: torch.device, dtype: torch.dtype, n: int, repeats: int = 10) -> float:
    """Operations per second of an n x n x n matrix product on random data, best of `repeats`."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _best(lambda: torch.mm(a, b, out=out), clock_for(device), repeats)


def _best(call, clock: Clock, repeats: int) -> float:
    call()
    best = math.inf
    for _ in range(repeats):
        best = min(best, clock(call))
    return best
