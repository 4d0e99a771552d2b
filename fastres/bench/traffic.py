"""What a device copies and multiplies at most."""

from __future__ import annotations

import math

import torch

from .timing import Clock, clock_for


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
