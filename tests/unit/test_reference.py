"""The reference backend: gradients by finite differences, and what it does with nothing."""

from __future__ import annotations

import pytest
import torch
from helpers.residual import KINDS, BlockEnd, Case, draw
from torch.autograd import gradcheck
from torch.func import functional_call

import fastres
from fastres.backends import reference
from fastres.functional import conv2d, max_pool2d, pad_shortcut

BACKWARD_ARGUMENTS = 17


def leaves(case: Case, seed: int) -> tuple[BlockEnd, list[str], list[torch.Tensor]]:
    """A block in fp64 and everything that has a gradient: parameters, x, shortcut."""
    torch.manual_seed(seed)
    block = BlockEnd(case).double()
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, _ in block.named_parameters()]
    values = [p.detach() for p in block.parameters()]
    values.append(draw(case.n, case.c_in, case.h, case.w, generator=generator))
    if case.kind != "none":
        values.append(draw(*case.shortcut(), generator=generator))
    return block, names, [value.requires_grad_() for value in values]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("kind", "frozen", "s_frozen"),
    [(kind, frozen, frozen) for kind in KINDS for frozen in (False, True)]
    + [("bn", False, True), ("bn", True, False)],
)
def test_gradcheck(kind, frozen, s_frozen, relu):
    case = Case(
        kind, c_in=2, c_out=3, h=3, w=2, relu=relu, frozen=frozen, s_frozen=s_frozen,
        s_channels=2, s_stride=2, spare=1,
    )  # fmt: skip
    block, names, inputs = leaves(case, seed=3)
    buffers = {name: b.clone() for name, b in block.named_buffers()}

    class Runner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x, shortcut=None):
            return self.block.fused(x, shortcut)

    runner = Runner()

    def run(*values):
        given = {f"block.{name}": v for name, v in zip(names, values, strict=False)}
        given |= {f"block.{name}": b.clone() for name, b in buffers.items()}
        return functional_call(runner, given, tuple(values[len(names) :]))

    with fastres.backend("reference"):
        assert gradcheck(run, inputs)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck_of_the_plain_convolution(groups):
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // groups, 3, 3, dtype=torch.float64, requires_grad=True)
    run = lambda x, w: conv2d(x, w, stride=2, padding=1, groups=groups)  # noqa: E731
    assert gradcheck(run, (x, weight))


def test_gradcheck_of_pad_shortcut_and_max_pool():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: pad_shortcut(x, 5, 2), x)
    assert gradcheck(lambda x: max_pool2d(x, 3, 2, 1), x)


def test_statistics_of_nothing_are_zero_not_nan():
    mean, var = reference.bn_stats(torch.empty(0, 3, 2, 2))
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.zeros(3))


def test_statistics_are_kept_in_single_precision_beside_half_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        mean, var = reference.bn_stats(torch.randn(2, 3, 4, 4).to(dtype))
        assert mean.dtype == var.dtype == torch.float32
    mean, _ = reference.bn_stats(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert mean.dtype == torch.float64


def test_an_operator_never_returns_its_argument():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert reference.pad_shortcut(x, 3, 1).data_ptr() != x.data_ptr()
    one, zero = torch.ones(3), torch.zeros(3)
    out = reference.bn_apply(x, zero, one, None, None, None, None, None, None, None, 1, False)
    assert out.data_ptr() != x.data_ptr()
    arguments = (x, None, x, zero, one, *[None] * 9, list(x.shape), 1, False)
    assert len(arguments) == BACKWARD_ARGUMENTS
    dy, dshortcut = reference.bn_backward(*arguments)
    assert len({x.data_ptr(), dy.data_ptr(), dshortcut.data_ptr()}) == 3
