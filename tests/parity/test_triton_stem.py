"""The kernels of the stem's max(relu(bn(y))) in the interpreter, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from parity.oracle import ATOL, EPS, UNSURE, assert_parity

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.backends import triton_layers as layers  # noqa: E402
from fastres.kernels import launch  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STEM = ([3, 3], [2, 2], [1, 1])
# windows that overlap, that meet, that leave gaps; uneven sides and padding
WINDOWS = [
    STEM,
    ([2, 2], [2, 2], [0, 0]),
    ([3, 3], [1, 1], [1, 1]),
    ([2, 3], [3, 1], [1, 0]),
    ([5, 4], [2, 3], [2, 2]),
    ([1, 1], [2, 2], [0, 0]),
]
KERNELS = (
    "bn_max_pool_kernel",
    "bn_max_pool_backward_reduce_kernel",
    "bn_max_pool_backward_kernel",
)


def make(dtype, channels, images=2, size=(9, 8), affine=True):
    """y, weight and bias; y is where neither ReLU nor maximum depends on rounding."""
    random = torch.Generator().manual_seed(channels)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.randn(images, channels, *size, generator=random).to(dtype)
    parameters = [torch.randn(channels, generator=random).mul(0.3).to(wide) for _ in range(2)]
    return y, *((parameters[0] + 1, parameters[1]) if affine else (None, None))


def statistics(y, frozen):
    """Mean and invstd in the statistics' dtype, of y or as a frozen BN keeps them."""
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    if frozen:
        return [torch.full((y.shape[1],), value, dtype=wide) for value in (0.1, 1.2)]
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    return [mean.to(wide), (var + EPS).rsqrt().to(wide)]


def pooled(y, weight, bias, dout, window, frozen, dtype):
    """Output and gradients in `dtype` by PyTorch and autograd; dout in the order of the output."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y = y.detach().to(dtype).requires_grad_()
    leaves = [y]
    if weight is not None:
        weight, bias = (v.detach().to(wide).requires_grad_() for v in (weight, bias))
        leaves += [weight, bias]
    mean, invstd = statistics(y.detach(), frozen) if frozen else (None, None)
    var = None if mean is None else invstd**-2 - EPS
    z = F.batch_norm(y, mean, var, weight, bias, training=not frozen, eps=EPS).relu()
    out = F.max_pool2d(z, *window)
    gradients = torch.autograd.grad(out, leaves, dout.to(dtype))
    return dict(zip(("out", "dy", "dweight", "dbias"), (out.detach(), *gradients), strict=False))


def unsure(y, weight, bias, window, frozen, dtype):
    """Windows of which rounding could choose another maximum."""
    mean, invstd = (v.view(1, -1, 1, 1).double() for v in statistics(y, frozen))
    z = (y.double() - mean) * invstd
    if weight is not None:
        z = z * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    kernel, stride, padding = window
    padded = F.pad(z, (padding[1],) * 2 + (padding[0],) * 2, value=-torch.inf)
    windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
    best = windows.topk(min(2, windows.shape[-1])).values
    near = best[..., 0].abs() < UNSURE[dtype]
    return near | ((best[..., 0] - best[..., -1] < UNSURE[dtype]) & (windows.shape[-1] > 1))


def run(operators, y, weight, bias, dout, window, frozen):
    """The same by launch operators, dout in the order of the output."""
    mean, invstd = statistics(y, frozen)
    bn = (y, mean, invstd, weight, bias)
    out, index = operators.bn_max_pool(*bn, *window)
    sums = operators.bn_max_pool_backward_reduce(dout, index, *bn, *window)
    count = y.numel() // y.shape[1]
    means = [None, None] if frozen else [total / count for total in sums]
    dy = operators.bn_max_pool_backward(dout, index, *bn, *means, *window)
    results = {"out": out, "dy": dy}
    if weight is not None:
        results |= {"dweight": sums[1], "dbias": sums[0]}
    return results, index


def check(dtype, channels, window, frozen=False, **changes):
    y, weight, bias = make(dtype, channels, **changes)
    skipped = unsure(y, weight, bias, window, frozen, dtype)
    dout = torch.randn(skipped.shape).to(dtype).masked_fill(skipped, 0)
    before = [launch.launched[name] for name in KERNELS]
    ours, index = run(backend, y, weight, bias, dout, window, frozen)
    assert [launch.launched[name] for name in KERNELS] == [count + 1 for count in before]
    arguments = (y, weight, bias, dout, window, frozen)
    exact, torchs = pooled(*arguments, torch.float64), pooled(*arguments, dtype)
    assert_parity(ours, torchs, exact, ATOL[dtype])
    for name in ("out", "dy"):
        assert ours[name].dtype == dtype
        assert ours[name].is_contiguous(memory_format=torch.channels_last), name
    assert index.dtype == torch.uint8
    assert index.is_contiguous(memory_format=torch.channels_last)
    # what is pooled is what bn_apply would have written
    z = backend.bn_apply(
        y, *statistics(y, frozen), weight, bias, None, None, None, None, None, 1, True
    )
    assert torch.equal(ours["out"].double(), F.max_pool2d(z.double(), *window))


@pytest.mark.parametrize("channels", [1, 3, 17, 64, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stem_at_every_width(channels, dtype, poison):
    check(dtype, channels, STEM)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_window(window, frozen, poison):
    check(torch.float32, 5, window, frozen, affine=not frozen)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 7), (13, 8)])
def test_every_extent(size, poison):
    check(torch.float32, 3, STEM, images=3, size=size)


def test_many_row_tiles_share_a_program(poison, monkeypatch):
    config = {"tile": 512, "programs": 3, "num_warps": 4}
    monkeypatch.setattr(layers, "config", lambda name, y: config)
    check(torch.float32, 17, STEM, images=3)


def test_first_of_equals_wins_as_in_torch(poison):
    # small integers: every window has ties, and zeros below the ReLU
    y = torch.randint(-2, 3, (2, 5, 9, 8)).float()
    bn = (y, torch.zeros(5), torch.ones(5), None, None)
    out, index = backend.bn_max_pool(*bn, *STEM)
    expected = reference.bn_max_pool(*bn, *STEM)
    assert torch.equal(out, expected[0])
    assert torch.equal(index, expected[1])
    dout = torch.randint(-4, 5, out.shape).float()
    ours = backend.bn_max_pool_backward_reduce(dout, index, *bn, *STEM)
    theirs = reference.bn_max_pool_backward_reduce(dout, index, *bn, *STEM)
    assert all(map(torch.equal, ours, theirs))
    means = [torch.ones(5), torch.full((5,), 2.0)]
    dy = backend.bn_max_pool_backward(dout, index, *bn, *means, *STEM)
    assert torch.equal(dy, reference.bn_max_pool_backward(dout, index, *bn, *means, *STEM))


def test_nan_and_infinity_come_through_as_in_torch():
    y = torch.randn(1, 3, 8, 8)
    y[0, 0, 3, 3], y[0, 1, 2, 5], y[0, 2, 4, 4] = torch.nan, torch.inf, -torch.inf
    bn = (y, torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3))
    out, index = backend.bn_max_pool(*bn, *STEM)
    expected = reference.bn_max_pool(*bn, *STEM)
    assert torch.equal(out.isnan(), expected[0].isnan())
    assert torch.equal(out.nan_to_num(7.0), expected[0].nan_to_num(7.0))
    assert torch.equal(index, expected[1])
    y[0, 1:] = 1.0
    dout = torch.randn_like(out)
    sums = backend.bn_max_pool_backward_reduce(dout, index, *bn, *STEM)
    # the gradient of the NaN pixel passes, and its place in xhat is a NaN
    assert not sums[0].isnan().any()
    assert sums[1].isnan().tolist() == [True, False, False]


def test_a_nan_in_the_gradient_reaches_what_it_would_in_torch():
    y, weight, bias = make(torch.float32, 3)
    bn = (y, *statistics(y, False), weight, bias)
    out, index = backend.bn_max_pool(*bn, *STEM)
    dout = torch.ones_like(out)
    dout[0, 1, 1, 1] = torch.nan
    ours = backend.bn_max_pool_backward(dout, index, *bn, None, None, *STEM)
    theirs = reference.bn_max_pool_backward(dout, index, *bn, None, None, *STEM)
    assert torch.equal(ours.isnan(), theirs.isnan())


def test_empty_batch():
    y = torch.empty(0, 4, 8, 8)
    bn = (y, torch.zeros(4), torch.ones(4), None, None)
    out, index = backend.bn_max_pool(*bn, *STEM)
    assert out.shape == index.shape == (0, 4, 4, 4)
    sums = backend.bn_max_pool_backward_reduce(out, index, *bn, *STEM)
    assert all(torch.equal(total, torch.zeros(4)) for total in sums)
    assert backend.bn_max_pool_backward(out, index, *bn, *sums, *STEM).shape == y.shape


def test_layouts_do_not_matter_and_repeats_are_bitwise_equal():
    y, weight, bias = make(torch.float32, 6)
    dout = torch.randn(2, 6, 5, 4)
    first = run(backend, y, weight, bias, dout, STEM, False)
    dense = (value.contiguous(memory_format=torch.channels_last) for value in (y, dout))
    moved, gradient = dense
    again = run(backend, moved, weight, bias, gradient, STEM, False)
    assert torch.equal(first[1], again[1])
    assert all(torch.equal(value, again[0][name]) for name, value in first[0].items())
