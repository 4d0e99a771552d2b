"""Whole bottlenecks in bf16: their errors against fp64 are no larger than PyTorch's own."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from fastres import backends, extension
from fastres.layers import Bottleneck, Stage, make_shortcut

BACKENDS = ["reference"] + ["native"] * (extension.unavailable_reason() is None)
# of gamma and beta of every BN: ordinary ones; a mean that is ten, then a hundred times the spread
SCALES = {"random": (1.0, 0.5), "large mean": (0.5, 5.0), "very large mean": (0.1, 10.0)}
SEEDS = 5
SLACK = 1.1
# beside a large mean no ReLU cuts, and the BN after it undoes a beta: its gradient is zero
ZERO = 1e-6
# the relative error of a variance whose moments are sums of rounded products
SMALL = 1e-4


def make(scale: str, seed: int, *, fused: bool) -> nn.Module:
    torch.manual_seed(seed)
    shortcut = make_shortcut("B", 32, 128, 1, nn.BatchNorm2d, fused=fused)
    options = {"fused": fused, "memory": "low"}
    made = Stage(Bottleneck(32, 32, 1, shortcut, **options), Bottleneck(128, 32, **options))
    gamma, beta = SCALES[scale]
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5 * gamma, 1.5 * gamma)
            nn.init.uniform_(module.bias, 0.5 * beta, 1.5 * beta)
    return made


def step(model: nn.Module, x: Tensor, dout: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, gradients and running statistics, computed in `dtype`."""
    model = copy.deepcopy(model).double() if dtype == torch.float64 else copy.deepcopy(model)
    x = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model(x)
    out.backward(dout.to(out.dtype))
    found = {"out": out.detach(), "dx": x.grad}
    found |= {f"d{name}": p.grad for name, p in model.named_parameters()}
    return found | {name: b for name, b in model.named_buffers() if "tracked" not in name}


def error(got: Tensor, want: Tensor) -> float:
    """The square of the relative error; of an absolute one where the true value is zero."""
    size = want.norm()
    return ((got.double() - want).norm() / (size if size > ZERO else 1.0)).item() ** 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", SCALES)
def test_errors_are_no_larger_than_torchs(scale, backend):
    """Root mean squares over some batches: a few ReLUs that decide the other way are noise."""
    mine: Counter[str] = Counter()
    torchs: Counter[str] = Counter()
    backends.reset_counts()
    for seed in range(SEEDS):
        plain, fused = (make(scale, seed, fused=flag) for flag in (False, True))
        x = (torch.randn(4, 32, 16, 16) + 2).to(torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        dout = torch.randn(4, 128, 16, 16).to(torch.bfloat16)
        exact = step(plain, x, dout, torch.float64)
        theirs = step(plain, x, dout, torch.bfloat16)
        with backends.backend(backend):
            ours = step(fused, x, dout, torch.bfloat16)
        for name, want in exact.items():
            mine[name] += error(ours[name], want)
            torchs[name] += error(theirs[name], want)
    assert backends.counts()[f"expand_reduce:{backend}"] == SEEDS
    worse = {
        name: (mine[name], torchs[name])
        for name in mine
        if not mine[name] <= SLACK**2 * torchs[name] + SEEDS * SMALL**2
    }
    assert not worse
