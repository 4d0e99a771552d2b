"""3x3 convolutions with fewer multiplications: as exact as torch's own, for any size they serve."""

from __future__ import annotations

import pytest
import torch
from parity.oracle import assert_parity

from fastres import extension
from fastres.backends import native

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)
GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)
NOTHING = (None,) * 4
# n, channels of x, channels of y, height, width: odd and even, one tile to many panels
SIZES = [
    (3, 32, 32, 13, 13),
    (2, 64, 96, 17, 24),
    (5, 96, 32, 20, 7),
    (33, 32, 64, 4, 4),
    (2, 288, 320, 16, 16),
    (1, 32, 32, 60, 61),
]


def draw(n, c_in, c_out, height, width, mean=0.0):
    def normal(*size):
        return torch.randn(size).add_(mean).contiguous(memory_format=torch.channels_last)

    weight = torch.randn(c_out, c_in, 3, 3) * (9 * c_in) ** -0.5
    return normal(n, c_in, height, width), weight, normal(n, c_out, height, width)


def ours(x, weight, dy):
    y, *_ = native.conv_stats(x, weight, *GEOMETRY, *NOTHING, False)
    dx, dw = native.conv_backward(dy, x, weight, *GEOMETRY, True, True)
    return {"y": y, "dx": dx, "dw": dw}


def torchs(x, weight, dy):
    y = torch.conv2d(x, weight, None, 1, 1)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, *GEOMETRY[:3], False, [0, 0], 1, [True, True, False]
    )
    return {"y": y, "dx": dx, "dw": dw}


@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("size", SIZES)
def test_as_exact_as_torch(size, mean):
    operands = draw(*size, mean=mean)
    exact = torchs(*(t.double() for t in operands))
    # of sums of nine times as many products as channels
    assert_parity(ours(*operands), torchs(*operands), exact, 4e-6)


def test_whole_numbers_are_exact():
    x, weight, dy = (torch.round(t * 2) for t in draw(3, 32, 64, 13, 14))
    weight = torch.round(weight * 20) * 4  # quarters of it come back from the transform
    results, expected = ours(x, weight, dy), torchs(x, weight, dy)
    for name, value in results.items():
        assert torch.equal(value, expected[name]), name


def test_layouts_of_the_weight():
    x, weight, dy = draw(3, 32, 64, 13, 14)
    first = ours(x, weight, dy)
    wide = weight.contiguous(memory_format=torch.channels_last)
    for name, value in ours(x.contiguous(), wide, dy.contiguous()).items():
        assert torch.equal(value, first[name]), name
    assert ours(x, wide, dy)["dw"].stride() == wide.stride()


def test_repeats_and_thread_counts_change_no_bit(two_threads):
    operands = draw(5, 64, 64, 29, 31)
    first = ours(*operands)
    for threads in (2, 2, 1, 1):
        torch.set_num_threads(threads)
        for name, value in ours(*operands).items():
            assert torch.equal(value, first[name]), name


def test_a_nan_reaches_what_it_enters():
    """And at most the other pixels of the same 2 x 2 tiles."""
    x, weight, dy = draw(3, 32, 32, 13, 13)
    x[1, 4, 6, 6] = torch.nan
    found = ours(x, weight, dy)["y"].isnan()
    assert found[1, :, 5:8, 5:8].all()
    assert found[1].all(0).sum() <= 16
    assert not found[[0, 2]].any()
