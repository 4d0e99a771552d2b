"""Random links for the tests of `chain_backward`, and what their gradients must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from parity.oracle import ATOL, assert_parity
from torch import Tensor

# a pre-activation this close to zero may pass the ReLU in one dtype and not in another
UNSURE = 1e-3
NAMES = ("dx", "dw", "sum_g", "sum_gx")


@dataclass
class Case:
    """A link: sizes, the kinds of its masks and shortcuts."""

    outer: int = 5
    inner: int = 7
    images: int = 2
    size: tuple[int, int] = (5, 6)
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    mask: str = "recomputed"  # "recomputed", "out" or "none"
    frozen: bool = False
    affine: bool = True
    prologue: bool = False
    residual: str = "none"  # "none", "same", "strided" or "wider"
    residual_mask: bool = False
    mask_by_x: bool = False
    need_dx: bool = True
    need_dw: bool = True

    def __str__(self) -> str:
        changed = (f"{k}={v}" for k, v in vars(self).items() if v != getattr(Case, k))
        return " ".join(changed) or "plain"

    def output_size(self) -> list[int]:
        """Height and width of y."""
        reach = self.dilation * (self.kernel - 1)
        return [(e + 2 * self.padding - reach - 1) // self.stride + 1 for e in self.size]


def _away_from_zero(value: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`value` moved where (value - mean) * scale + bias is close to zero."""
    mean, scale, bias = (v.double().view(1, -1, 1, 1) for v in (mean, scale, bias))
    near = ((value.double() - mean) * scale + bias).abs() < UNSURE
    return torch.where(near, value.double() + 0.1, value.double()).to(value.dtype)


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple:
    """The arguments of `chain_backward`: activations in dtype, vectors and the weight in fp32."""
    random = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=random, dtype=torch.float64)

    def activation(*sizes: int) -> Tensor:
        return draw(*sizes).to(dtype).contiguous(memory_format=torch.channels_last)

    def vectors(channels: int) -> list[Tensor]:
        mean, weight, bias = (draw(channels).mul(0.3).to(wide) for _ in range(3))
        return [mean, draw(channels).abs().add(0.5).to(wide), weight + 1, bias]

    outer = (case.images, case.outer, *case.output_size())
    bn, pro = vectors(case.outer), vectors(case.inner)
    y = _away_from_zero(activation(*outer), bn[0], bn[1] * bn[2], bn[3])
    x = activation(case.images, case.inner, *case.size)
    if case.prologue:
        x = _away_from_zero(x, pro[0], pro[1] * pro[2], pro[3])
    out = activation(*outer).relu() if case.mask == "out" else None
    means = [None, None] if case.frozen else [draw(case.outer).mul(0.1).to(wide) for _ in range(2)]
    if not case.affine:
        y = _away_from_zero(y, bn[0], bn[1], torch.zeros_like(bn[0]))
        bn[2:] = [None, None]
    fan = (case.outer * case.kernel**2) ** 0.5
    weight = draw(case.outer, case.inner // case.groups, case.kernel, case.kernel).div(fan).to(wide)
    step = 2 if case.residual == "strided" else 1
    residual = residual_mask = None
    if case.residual != "none":
        channels = case.inner + (3 if case.residual == "wider" else 0)
        residual = activation(case.images, channels, *((e - 1) // step + 1 for e in case.size))
        residual_mask = activation(*residual.shape).relu() if case.residual_mask else None
    arguments = (
        activation(*outer), out, y, *bn, *means, case.mask == "recomputed", x, weight,
        [case.stride] * 2, [case.padding] * 2, [case.dilation] * 2, case.groups,
        *(pro if case.prologue else [None] * 4), residual, residual_mask, [step] * 2,
        case.mask_by_x, case.need_dx, case.need_dw,
    )  # fmt: skip
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)


def in_dtype(arguments: Sequence, dtype: torch.dtype) -> tuple:
    """The same arguments with every tensor in `dtype`."""
    return tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments)


def check(backend, reference, case: Case, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """The rule of parity for one link; the results of `backend.chain_backward` by name."""
    arguments = make(case, dtype, seed=seed)
    results = backend.chain_backward(*arguments)
    exact = reference.chain_backward(*in_dtype(arguments, torch.float64))
    torchs = reference.chain_backward(*arguments)
    x, weight = arguments[10], arguments[11]
    for ours, theirs in zip(results, torchs, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
    if case.need_dx:
        assert results[0].shape == x.shape
        assert results[0].is_contiguous(memory_format=torch.channels_last)
    if case.need_dw:
        assert results[1].stride() == weight.stride()
    named = [dict(zip(NAMES, values, strict=True)) for values in (results, torchs, exact)]
    assert_parity(*named, ATOL[dtype])
    return named[0]


def varied(case: Case, **changes) -> Case:
    """`case` with some fields changed."""
    return replace(case, **changes)
