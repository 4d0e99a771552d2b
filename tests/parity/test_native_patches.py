"""Weight gradients that are products of our own: as exact as torch's, for any geometry."""

from __future__ import annotations

import pytest
import torch
from parity.oracle import assert_parity

from fastres import extension
from fastres.backends import native

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)
# n, channels of x, channels of y, height, width; kernel, stride, padding, dilation
CASES = [
    ((3, 32, 32, 13, 11), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 64, 48, 9, 8), (3, 3), (2, 1), (1, 0), (1, 1)),
    ((2, 33, 17, 10, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 40, 96, 12, 12), (3, 3), (1, 1), (2, 2), (2, 2)),
    ((1, 35, 31, 11, 14), (5, 3), (3, 2), (2, 2), (1, 2)),
    ((2, 32, 64, 7, 7), (1, 3), (1, 2), (0, 1), (1, 1)),
    ((5, 128, 40, 3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),  # few pixels
    ((4, 64, 64, 2, 1), (3, 3), (2, 2), (1, 1), (1, 1)),  # one stride passes over all columns
    ((2, 512, 320, 14, 14), (3, 3), (2, 2), (1, 1), (1, 1)),  # several blocks and panels
]
DTYPES = [torch.float32, torch.bfloat16]


def draw(size, kernel, stride, padding, dilation, dtype):
    n, c_in, c_out, height, width = size
    x = torch.randn(n, c_in, height, width)
    weight = torch.randn(c_out, c_in, *kernel)
    dy = torch.randn_like(torch.conv2d(x, weight, None, stride, padding, dilation))
    x, dy = (t.to(dtype, memory_format=torch.channels_last) for t in (x, dy))
    return dy, x, weight, (stride, padding, dilation)


def ours(dy, x, weight, geometry):
    nothing, dw = native.conv_backward(dy, x, weight, *geometry, 1, False, True)
    assert nothing.numel() == 0
    return dw


def torchs(dy, x, weight, geometry):
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, *geometry, False, [0, 0], 1, [False, True, False]
    )[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_exact_as_fp32(case, dtype):
    """From 16-bit activations too: the products are exact and their sums are in fp32."""
    dy, x, weight, geometry = draw(*case, dtype)
    exact = torchs(dy.double(), x.double(), weight.double(), geometry)
    wide = torchs(dy.float(), x.float(), weight, geometry)
    result = ours(dy, x, weight, geometry)
    assert result.dtype == torch.float32
    assert_parity({"dw": result}, {"dw": wide}, {"dw": exact}, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_form_of_the_weight(dtype):
    dy, x, weight, geometry = draw(*CASES[1], dtype)
    first = ours(dy, x, weight, geometry)
    assert first.stride() == weight.stride()
    last = weight.to(memory_format=torch.channels_last)
    second = ours(dy, x, last, geometry)
    assert second.stride() == last.stride()
    assert torch.equal(first, second)
    assert torch.equal(ours(dy, x, weight.to(dtype), geometry), first.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_and_thread_counts_change_no_bit(dtype, two_threads):
    operands = draw(*CASES[-1], dtype)
    first = ours(*operands)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        assert torch.equal(ours(*operands), first)


def test_with_the_gradient_of_the_input():
    dy, x, weight, geometry = draw(*CASES[0], torch.float32)
    dx, dw = native.conv_backward(dy, x, weight, *geometry, 1, True, True)
    assert torch.equal(dw, ours(dy, x, weight, geometry))
    expected = torch.ops.aten.convolution_backward(
        dy, x, weight, None, *geometry, False, [0, 0], 1, [True, False, False]
    )[0]
    torch.testing.assert_close(dx, expected)
