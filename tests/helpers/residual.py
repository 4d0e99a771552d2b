"""The end of a residual block, relu(bn(conv(x)) + shortcut), by torch's modules and by fastres.

The rule of parity: |ours - fp64| <= 2 * |torch in our dtype - fp64| + a small absolute term, for
outputs, every gradient and the running statistics. fp64 is torch's modules in double precision.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastres
from fastres.functional import BatchNormState, conv_bn_act, conv_bn_add_act

KINDS = ("none", "identity", "bn", "pad")

# name: dtype of parameters and inputs, autocast's dtype
MODES = {
    "fp64": (torch.float64, None),
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "bf16 autocast": (torch.float32, torch.bfloat16),
    "fp16": (torch.float16, None),
}
# relative to the largest value: rounding of results that torch accumulates in double precision
SMALL = {"fp64": 1e-12, "fp32": 4e-6, "bf16": 4e-3, "bf16 autocast": 4e-3, "fp16": 5e-4}
# a value this close to zero may pass the ReLU in one dtype and not in another
UNSURE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.15, "bf16 autocast": 0.15, "fp16": 2e-2}


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one block's end; the defaults are an ordinary one."""

    kind: str = "none"
    n: int = 2
    c_in: int = 8
    c_out: int = 16
    h: int = 7
    w: int = 8
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    relu: bool = True
    frozen: bool = False
    s_frozen: bool = False
    affine: bool = True
    s_channels: int = 8
    s_stride: int = 1
    spare: int = 0

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)

    def output(self) -> tuple[int, int, int, int]:
        """Sizes of the output."""
        return (
            self.n, self.c_out, (self.h - 1) // self.stride + 1, (self.w - 1) // self.stride + 1
        )  # fmt: skip

    def shortcut(self) -> tuple[int, ...] | None:
        """Sizes of the shortcut; `spare` pixels lie after the last one that is read."""
        n, c, h, w = self.output()
        if self.kind == "none":
            return None
        if self.kind != "pad":
            return n, c, h, w
        spare = min(self.spare, self.s_stride - 1)
        height, width = (self.s_stride * (extent - 1) + 1 + spare for extent in (h, w))
        return n, self.s_channels, height, width


class BlockEnd(nn.Module):
    """`plain` is the oracle, `fused` the code under test, on the same parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.conv = nn.Conv2d(
            case.c_in, case.c_out, case.kernel, case.stride, case.padding, case.dilation,
            case.groups, bias=False,
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(case.c_out, affine=case.affine)
        self.s_bn = nn.BatchNorm2d(case.c_out, affine=case.affine) if case.kind == "bn" else None
        for bn in filter(None, (self.bn, self.s_bn)):
            if case.affine:
                nn.init.uniform_(bn.weight, 0.5, 1.5)
                nn.init.normal_(bn.bias, std=0.3)
            nn.init.normal_(bn.running_mean, std=0.3)
            nn.init.uniform_(bn.running_var, 0.5, 1.5)
        self.bn.train(not case.frozen)
        if self.s_bn is not None:
            self.s_bn.train(not case.s_frozen)

    def plain(self, x: Tensor, shortcut: Tensor | None, relu: bool | None = None) -> Tensor:
        case = self.case
        out = self.bn(self.conv(x))
        if self.s_bn is not None:
            out = out + self.s_bn(shortcut)
        elif case.kind == "identity":
            out = out + shortcut
        elif case.kind == "pad":
            taken = shortcut[:, :, :: case.s_stride, :: case.s_stride]
            missing = out.shape[1] - taken.shape[1]
            out = out + F.pad(taken, (0, 0, 0, 0, 0, missing))
        return F.relu(out) if (case.relu if relu is None else relu) else out

    def fused(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        conv, case, state = self.conv, self.case, BatchNormState.of(self.bn)
        geometry = {
            "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation,
            "groups": conv.groups, "relu": case.relu,
        }  # fmt: skip
        if shortcut is None:
            return conv_bn_act(x, conv.weight, state, **geometry)
        return conv_bn_add_act(
            x, conv.weight, state, shortcut,
            shortcut_stride=case.s_stride if case.kind == "pad" else 1,
            shortcut_bn=None if self.s_bn is None else BatchNormState.of(self.s_bn), **geometry,
        )  # fmt: skip


@dataclass
class Inputs:
    """Leaves of one step; `dout` is zero where the ReLU's decision hangs on rounding."""

    x: Tensor
    shortcut: Tensor | None
    dout: Tensor


def draw(*size: int, generator: torch.Generator, integers: bool = False) -> Tensor:
    """Standard normal values, or small integers, in double precision."""
    if integers:
        return torch.randint(-3, 4, size, generator=generator).double()
    return torch.randn(size, generator=generator, dtype=torch.float64)


def make(case: Case, mode: str = "fp32", seed: int = 0) -> tuple[BlockEnd, Inputs]:
    """A block's end in the dtype of `mode`, and what goes into it."""
    dtype, _ = MODES[mode]
    torch.manual_seed(seed)
    block = BlockEnd(case).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    x = draw(case.n, case.c_in, case.h, case.w, generator=generator).to(dtype)
    size = case.shortcut()
    shortcut = None if size is None else draw(*size, generator=generator).to(dtype)
    dout = draw(*case.output(), generator=generator).to(dtype)
    if case.relu:
        twin = copy.deepcopy(block).double()
        value = twin.plain(_as(x, torch.float64), _as(shortcut, torch.float64), relu=False)
        dout[value.abs() < UNSURE[mode]] = 0
    return block, Inputs(x, shortcut, dout)


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype)


def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def step(
    block: BlockEnd, path: str, inputs: Inputs, dtype: torch.dtype, autocast: torch.dtype | None
) -> dict[str, Tensor]:
    """Output, gradients and buffers of one forward and backward by `path`, on a copy of `block`."""
    block = copy.deepcopy(block).to(dtype)
    x = _as(inputs.x, dtype).requires_grad_()
    shortcut = _as(inputs.shortcut, dtype)
    if shortcut is not None:
        shortcut.requires_grad_()
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        # inside a network the shortcut comes from a convolution, in autocast's dtype
        out = getattr(block, path)(x, _cast(shortcut, autocast))
    out.backward(inputs.dout.to(out.dtype))
    found = {"out": out.detach(), "dx": x.grad}
    if shortcut is not None:
        found["dshortcut"] = shortcut.grad
    found |= {f"d{name}": p.grad for name, p in block.named_parameters()}
    return found | dict(block.named_buffers())


def excess(ours: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor]) -> dict:
    """By how much each of ours misses twice torch's error, relative to its largest value."""
    assert ours.keys() == torchs.keys() == exact.keys()
    beyond = {}
    for name, truth in exact.items():
        assert ours[name].shape == truth.shape, name
        if not truth.numel():
            continue
        error = (ours[name].double() - truth.double()).abs().max().item()
        allowed = 2 * (torchs[name].double() - truth.double()).abs().max().item()
        scale = max(truth.double().abs().max().item(), 1.0)
        beyond[name] = (error - allowed) / scale
    return beyond


def assert_parity(ours, torchs, exact, small: float) -> None:
    """The rule of parity for every named result; a NaN of ours fails."""
    for name, beyond in excess(ours, torchs, exact).items():
        assert beyond <= small, f"{name}: {beyond} beyond twice torch's error, allowed {small}"


def check(case: Case, mode: str = "fp32", backend: str = "native", seed: int = 0) -> dict:
    """One step of `case` under the rule of parity; returns our results."""
    block, inputs = make(case, mode, seed)
    dtype, autocast = MODES[mode]
    exact = step(block, "plain", inputs, torch.float64, None)
    torchs = step(block, "plain", inputs, dtype, autocast)
    with fastres.backend(backend):
        ours = step(block, "fused", inputs, dtype, autocast)
    assert ours["out"].is_contiguous(memory_format=torch.channels_last)
    for name, value in ours.items():
        assert value.dtype == torchs[name].dtype, name
    assert_parity(ours, torchs, exact, SMALL[mode])
    return ours


@contextlib.contextmanager
def nan_memory() -> Iterator[None]:
    """Memory from torch.empty is full of NaN inside."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(64).isnan().all()
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic)


def gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor | None]:
    """Gradients of function(*leaves).sum() for all leaves."""
    for leaf in leaves:
        leaf.grad = None
    function(*leaves).sum().backward()
    return [leaf.grad for leaf in leaves]
