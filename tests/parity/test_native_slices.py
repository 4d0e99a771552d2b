"""The backward pass in slices of images equals the one over the whole batch, and is no less
accurate; gradients of convolutions for which oneDNN hands back memory it never wrote."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.residual import KINDS, Case, check, make, step

import fastres
from fastres import extension
from fastres.backends import native

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)


@pytest.fixture
def slices():
    """Sets the bytes of a slice; what they were comes back afterwards."""
    extension.load()
    before = torch.ops.fastres_native.set_slice_bytes(1 << 20)
    yield torch.ops.fastres_native.set_slice_bytes
    torch.ops.fastres_native.set_slice_bytes(before)


def test_setting_returns_what_was_set(slices):
    assert slices(123) == 1 << 20
    assert slices(1 << 20) == 123


@pytest.mark.parametrize("mode", ["fp32", "bf16", "bf16 autocast"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_image_a_slice(kind, mode, slices):
    slices(1)
    check(Case(kind, n=5, h=9, stride=2, s_stride=2, spare=1), mode)
    check(Case(kind, n=5, frozen=True, s_frozen=True), mode)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_weights_gradient_depends_on_the_slices(kind, slices):
    block, inputs = make(Case(kind, n=7, s_stride=2, spare=1))
    with fastres.backend("native"):
        whole = step(block, "fused", inputs, torch.float32, None)
        values = inputs.x.numel() + 7 * 16 * 7 * 8
        slices(2 * 4 * values // 7)  # two images: slices of 2, 2, 2 and 1
        sliced = step(block, "fused", inputs, torch.float32, None)
    for name, value in whole.items():
        if name == "dconv.weight":
            scale = value.abs().max().item()
            torch.testing.assert_close(sliced[name], value, rtol=0, atol=1e-6 * scale)
        elif name == "dx":  # oneDNN may choose another kernel for another batch
            torch.testing.assert_close(sliced[name], value, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(sliced[name], value), name


@pytest.mark.parametrize(("need_dx", "need_dw"), [(True, False), (False, True), (False, False)])
def test_slices_of_what_is_asked_for(need_dx, need_dw, slices):
    y = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    x, weight = torch.randn(4, 3, 5, 5), torch.randn(6, 3, 3, 3)
    zero, one = torch.zeros(6), torch.ones(6)
    head = (torch.ones_like(y), None, y, zero, one, None, None, zero, zero)
    tail = (x, weight, [1, 1], [1, 1], [1, 1], 1, need_dx, need_dw)
    results = []
    for size in (1 << 20, 1):
        slices(size)
        results.append(native.conv_bn_backward(*head, *[None] * 5, [], 1, False, *tail))
    for whole, sliced, wanted in zip(*results, (need_dx, need_dw, False), strict=True):
        torch.testing.assert_close(sliced, whole)
        assert bool(sliced.numel()) is wanted


def test_a_sum_over_many_slices_is_kept_in_single_precision(slices):
    """The regression: slices were added in bf16, and every addition lost bits."""
    torch.manual_seed(0)
    images = 64
    y = torch.randn(images, 8, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    x = (torch.randn(images, 4, 6, 6) + 1).bfloat16()
    dout = (torch.randn_like(y) + 1).bfloat16()
    weight, one = torch.randn(8, 4, 3, 3), torch.ones(8)
    head = (dout, None, y, 0 * one, one, None, None, None, None, *[None] * 5, [], 1, False)
    tail = ([1, 1], [1, 1], [1, 1], 1, False, True)
    exact = torch.ops.aten.convolution_backward(
        dout.double(), x.double(), weight.double(), None, *tail[:3], False, [0, 0], 1,
        [False, True, False],
    )[1]  # fmt: skip
    rounding = (exact.bfloat16().double() - exact).abs().max()
    for kept_as in (torch.bfloat16, torch.float32):
        slices(1)
        dw = native.conv_bn_backward(*head, x, weight.to(kept_as), *tail)[1]
        assert dw.dtype == kept_as
        assert (dw.double() - exact).abs().max() <= 2 * rounding + 1e-3


@pytest.mark.parametrize("size", [(2, 1), (1, 1), (5, 2), (2, 2)])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("channels", [3, 16])
def test_a_weight_gradient_where_the_stride_passes_over_all_columns(channels, stride, size):
    """The regression: oneDNN's bf16 gradient had places it never wrote. Zero is right there."""
    x = torch.randn(2, channels, *size).bfloat16()
    weight = torch.randn(4, channels, 3, 3).bfloat16()
    y = F.conv2d(x, weight, None, stride, 1)
    dy = torch.randn_like(y)
    exact = torch.nn.grad.conv2d_weight(
        x.double(), weight.shape, dy.double(), stride=stride, padding=1
    )
    geometry = ([stride] * 2, [1, 1], [1, 1], 1)
    for _ in range(5):
        garbage = [torch.full((1 << bits,), math.nan) for bits in range(2, 17) for _ in range(4)]
        del garbage
        for need_dx in (True, False):
            dw = native.conv_backward(dy, x, weight, *geometry, need_dx, True)[1]
            torch.testing.assert_close(dw.double(), exact, rtol=8e-3, atol=1e-2)


@pytest.mark.parametrize("size", [(29, 31), (7, 8)])
def test_a_weight_gradient_of_a_dilated_kernel(size):
    """The regression: oneDNN's bf16 gradient was in part memory that it never wrote."""
    x, weight = torch.randn(5, 24, *size).bfloat16(), torch.randn(48, 24, 3, 3).bfloat16()
    dy = torch.randn_like(F.conv2d(x, weight, None, 1, 2, 2))
    exact = torch.nn.grad.conv2d_weight(
        x.double(), weight.shape, dy.double(), padding=2, dilation=2
    )
    for _ in range(5):
        dw = native.conv_backward(dy, x, weight, [1, 1], [2, 2], [2, 2], 1, True, True)[1]
        torch.testing.assert_close(dw.double(), exact, rtol=8e-3, atol=1e-1)
