"""Values that are not ordinary numbers go through the C++ kernels as they go through torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastres
from fastres.functional import BatchNormState, bn_act, bn_add_act, conv_bn_act, max_pool2d

SPECIAL = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, -1e-40, 3e38, -3e38, 1.0, -1.0]
BACKENDS = ["reference", "native"]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request):
    with fastres.backend(request.param):
        yield


def unit(channels: int) -> BatchNormState:
    """A frozen normalisation that changes nothing."""
    zero, one = torch.zeros(channels), torch.ones(channels)
    return BatchNormState(None, None, zero, one, training=False, eps=0.0)


def special(dtype, channels: int = 3) -> torch.Tensor:
    """Every special value in every channel and in every lane of a vector."""
    values = torch.tensor(SPECIAL).repeat(channels * 12)
    y = values.view(1, -1, 1, channels * len(SPECIAL)).permute(0, 3, 2, 1)
    return y.reshape(1, channels, -1, 4).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu(dtype):
    y = special(dtype)
    exact, leaf = y.clone().requires_grad_(), y.clone().requires_grad_()
    want, out = F.relu(exact), bn_act(leaf, unit(3))
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    dout = special(dtype).flip(2)
    want.backward(dout)
    out.backward(dout)
    torch.testing.assert_close(leaf.grad, exact.grad, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bn_act(y, unit(3), relu=False), y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 2])
def test_join_with_an_identity_or_padded_shortcut(channels, dtype):
    y = special(dtype)
    shortcut = special(dtype).flip(2)[:, :channels].contiguous()
    leaves = [t.clone().requires_grad_() for t in (y, shortcut)]
    ours = [t.clone().requires_grad_() for t in (y, shortcut)]
    # torch would round the sum once more than we do: ours is that of fp32
    padded = F.pad(leaves[1], (0, 0, 0, 0, 0, 3 - channels))
    want = F.relu((leaves[0].float() + padded.float()).to(dtype))
    out = bn_add_act(ours[0], unit(3), ours[1])
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    dout = torch.randn(out.shape).to(dtype)
    want.backward(dout)
    out.backward(dout)
    for mine, exact in zip(ours, leaves, strict=True):
        torch.testing.assert_close(mine.grad, exact.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_channel_with_a_special_value_leaves_the_others_alone(value):
    """Training: its statistics are not numbers, as in torch, and its neighbours are unharmed."""
    y = torch.randn(3, 17, 6, 5)
    clean = fastres_step(y)
    y[1, 5, 2, 2] = value
    dirty = fastres_step(y)
    others = [c for c in range(17) if c != 5]
    for name, before in clean.items():
        now = dirty[name]
        index = (slice(None), others) if now.dim() == 4 else others
        assert torch.equal(now[index], before[index]), name
        mine = now[:, 5] if now.dim() == 4 else now[5]
        if name == "running_mean":  # inf in torch's CPU kernel, NaN in its GPU kernel
            assert not mine.isfinite().any()
        else:
            assert mine.isnan().all(), name


def fastres_step(y):
    bn = torch.nn.BatchNorm2d(y.shape[1])
    leaf = y.clone().requires_grad_()
    out = bn_act(leaf, BatchNormState.of(bn), relu=False)
    torch.manual_seed(1)
    out.backward(torch.randn(y.shape))
    return {
        "out": out.detach(), "dy": leaf.grad, "dgamma": bn.weight.grad,
        "running_mean": bn.running_mean, "running_var": bn.running_var,
    }  # fmt: skip


def test_a_nan_in_the_image_reaches_the_loss():
    x = torch.randn(2, 3, 8, 8)
    x[0, 1, 4, 4] = math.nan
    bn = torch.nn.BatchNorm2d(5).eval()
    out = conv_bn_act(x, torch.randn(5, 3, 3, 3), BatchNormState.of(bn), padding=1)
    assert out[0].isnan().sum() == 5 * 9
    assert not out[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("values", [SPECIAL, [-math.inf], [math.nan], [math.nan, -math.inf, 1.0]])
def test_max_pool(values, window, dtype):
    generator = torch.Generator().manual_seed(0)
    choice = torch.randint(len(values), (2, 17, 9, 8), generator=generator)
    x = torch.tensor(values)[choice].to(dtype)
    exact, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    want, out = F.max_pool2d(exact, *window), max_pool2d(leaf, *window)
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    dout = torch.randint(-3, 4, want.shape, generator=generator).to(dtype)
    want.backward(dout)
    out.backward(dout)
    assert torch.equal(leaf.grad, exact.grad)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_large_mean_loses_no_more_than_in_torch(offset):
    """mean 1e4, std 1, where the difference of E[y^2] and E[y]^2 would be noise."""
    y = torch.randn(8, 5, 20, 20) + offset
    exact_bn, torch_bn, our_bn = (torch.nn.BatchNorm2d(5).to(t) for t in (torch.float64,) * 3)
    torch_bn, our_bn = torch_bn.float(), our_bn.float()
    exact = exact_bn(y.double())
    torch_error = (torch_bn(y).double() - exact).abs().max()
    out = bn_act(y, BatchNormState.of(our_bn), relu=False)
    assert (out.double() - exact).abs().max() <= 2 * torch_error + 1e-6
    torch.testing.assert_close(our_bn.running_var.double(), exact_bn.running_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(our_bn.running_mean, torch_bn.running_mean, rtol=1e-6, atol=0)
