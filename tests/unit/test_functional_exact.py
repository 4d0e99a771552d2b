"""Small integers: sums, means over powers of two and convolutions are exact, so results must be
equal to the last bit, on every CPU backend and dtype."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastres
from fastres.functional import conv2d, max_pool2d, pad_shortcut

launch = torch.ops.fastres

PAIRS = [
    ("reference", torch.float32),
    ("reference", torch.bfloat16),
    ("reference", torch.float16),
    ("reference", torch.float64),
    ("native", torch.float32),
    ("native", torch.bfloat16),
]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-{str(pair[1])[6:]}")
def dtype(request):
    name, dtype = request.param
    with fastres.backend(name):
        yield dtype


def integers(*size: int, seed: int = 0, low: int = -3, high: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, size, generator=generator).double()


def statistics_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("size", [(2, 3, 4, 8), (1, 17, 2, 2), (4, 65, 1, 1), (2, 5, 128, 128)])
def test_statistics(dtype, size):
    """Means merge by division, so a unit or two in the last place is the most that can be asked;
    a constant channel is exact."""
    y = integers(*size)
    y[:, 0] = 3
    mean, var = launch.bn_stats(y.to(dtype))
    unit = torch.finfo(mean.dtype).eps
    torch.testing.assert_close(mean.double(), y.mean((0, 2, 3)), rtol=4 * unit, atol=4 * unit)
    torch.testing.assert_close(
        var.double(), y.var((0, 2, 3), correction=0), rtol=8 * unit, atol=8 * unit
    )
    assert mean[0] == 3
    assert var[0] == 0


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("kind", ["none", "identity", "bn", "pad"])
def test_join_and_its_gradient(dtype, kind, relu):
    """mean and gamma integers, invstd a power of two."""
    n, c, h, w = 2, 6, 5, 3
    y, dout = integers(n, c, h, w), integers(n, c, h, w, seed=1)
    mean, weight, bias = (integers(c, seed=seed) for seed in (2, 3, 4))
    s_mean, s_weight, s_bias = (integers(c, seed=seed) for seed in (5, 6, 7))
    invstd = torch.full((c,), 0.5, dtype=torch.float64)
    shortcut = integers(n, 4, 2 * h, 2 * w - 1, seed=8) if kind == "pad" else None
    if kind in ("identity", "bn"):
        shortcut = integers(n, c, h, w, seed=8)

    def per_channel(vector):
        return vector.view(1, -1, 1, 1)

    def branch(value, mean, weight, bias):
        return (value - per_channel(mean)) * per_channel(0.5 * weight) + per_channel(bias)

    want_value = branch(y, mean, weight, bias)
    if kind == "identity":
        want_value = want_value + shortcut
    elif kind == "bn":
        want_value = want_value + branch(shortcut, s_mean, s_weight, s_bias)
    elif kind == "pad":
        want_value = want_value + F.pad(shortcut[:, :, ::2, ::2], (0, 0, 0, 0, 0, c - 4))
    want = want_value.relu() if relu else want_value

    activation = lambda t: None if t is None else t.to(dtype)  # noqa: E731
    wide = statistics_dtype(dtype)
    vector = lambda t: t.to(wide)  # noqa: E731
    second = [vector(t) for t in (s_mean, invstd, s_weight, s_bias)] if kind == "bn" else [None] * 4
    stride = 2 if kind == "pad" else 1
    first = [vector(t) for t in (mean, invstd, weight, bias)]
    out = launch.bn_apply(activation(y), *first, activation(shortcut), *second, stride, relu)
    assert torch.equal(out.double(), want)

    g = torch.where(want_value <= 0, 0.0, dout) if relu else dout
    kept = out if relu and kind != "none" else None
    beside = activation(shortcut) if kind == "bn" else None
    sums = launch.bn_backward_reduce(
        activation(dout), kept, activation(y), *first, beside, *second[:2], relu
    )
    xhat = (y - per_channel(mean)) * 0.5
    assert torch.equal(sums[0].double(), g.sum((0, 2, 3)))
    assert torch.equal(sums[1].double(), (g * xhat).sum((0, 2, 3)))
    if kind == "bn":
        s_xhat = (shortcut - per_channel(s_mean)) * 0.5
        assert torch.equal(sums[2].double(), (g * s_xhat).sum((0, 2, 3)))

    # means that are small powers of two, so that every product stays exact
    mean_g, mean_gx = (torch.full((c,), v, dtype=wide) for v in (1.0, 2.0))
    size = [] if shortcut is None else list(shortcut.shape)
    dy, dshortcut = launch.bn_backward(
        activation(dout), kept, activation(y), *first, mean_g, mean_gx, beside, *second[:3],
        mean_gx if kind == "bn" else None, size, stride, relu,
    )  # fmt: skip
    want_dy = per_channel(0.5 * weight) * (g - 1 - xhat * 2)
    assert torch.equal(dy.double(), want_dy)
    if kind == "identity":
        assert torch.equal(dshortcut.double(), g)
    elif kind == "bn":
        want_ds = per_channel(0.5 * s_weight) * (g - 1 - s_xhat * 2)
        assert torch.equal(dshortcut.double(), want_ds)
    elif kind == "pad":
        want_ds = torch.zeros_like(shortcut)
        want_ds[:, :, ::2, ::2] = g[:, :4]
        assert torch.equal(dshortcut.double(), want_ds)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (1, 1, 2)]
)
def test_convolution_and_its_gradients(dtype, stride, dilation, groups):
    x, weight = integers(2, 4, 7, 8), integers(6, 4 // groups, 3, 3, seed=1)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    geometry = {"stride": stride, "padding": 1, "dilation": dilation, "groups": groups}
    want = F.conv2d(*leaves, **geometry)
    dout = integers(*want.shape, seed=2, low=-1, high=2)
    want.backward(dout)
    ours = [t.to(dtype).requires_grad_() for t in (x, weight)]
    y = conv2d(*ours, **geometry)
    y.backward(dout.to(dtype))
    assert torch.equal(y.double(), want)
    for mine, exact in zip(ours, leaves, strict=True):
        # an integer beyond 256 is rounded in bf16; once, from the exact sum
        assert torch.equal(mine.grad, exact.grad.to(dtype))


@pytest.mark.parametrize("channels", [4, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pad_shortcut(dtype, stride, channels):
    x = integers(2, 4, 7, 8)
    leaf = x.to(dtype).requires_grad_()
    out = pad_shortcut(leaf, channels, stride)
    want = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, channels - 4))
    assert torch.equal(out.double(), want)
    dout = integers(*want.shape, seed=1)
    out.backward(dout.to(dtype))
    want_dx = torch.zeros_like(x)
    want_dx[:, :, ::stride, ::stride] = dout[:, :4]
    assert torch.equal(leaf.grad.double(), want_dx)


@pytest.mark.parametrize(
    "window", [(3, 2, 1), (2, 2, 0), (2, 1, 1), (3, 3, 0), ((1, 3), (2, 1), 0)]
)
@pytest.mark.parametrize("size", [(2, 3, 7, 8), (1, 17, 3, 3), (0, 3, 4, 4), (3, 65, 13, 5)])
def test_max_pool_with_ties(dtype, window, size):
    """Few distinct values: the gradient must go where torch sends it."""
    x = integers(*size, low=0, high=3)
    exact, leaf = x.clone().requires_grad_(), x.to(dtype).requires_grad_()
    want, out = F.max_pool2d(exact, *window), max_pool2d(leaf, *window)
    assert torch.equal(out.double(), want)
    dout = integers(*want.shape, seed=1)
    want.backward(dout)
    out.backward(dout.to(dtype))
    assert torch.equal(leaf.grad.double(), exact.grad)
