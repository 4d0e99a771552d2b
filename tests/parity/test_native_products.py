"""1x1 convolutions as products of our own and the loops over whole vectors of bf16, against fp64:
every size around a vector, a tile and a panel, strides, prologues, statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parity.block_cases import SHORTCUTS, expand_case
from parity.oracle import KINDS, launch_join, make_join

from fastres import extension
from fastres.backends import native, reference

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)
DTYPES = (torch.float32, torch.bfloat16)
# of the largest value: a sum of some hundred products, and one rounding to bf16
CLOSE = {torch.float32: 4e-6, torch.bfloat16: 8e-3}
# images, inputs, outputs, height, width: parts of a vector and of a tile, odd rows, a depth whose
# rows lie a way of the cache apart, more rows than a panel
SIZES = [
    (2, 16, 17, 5, 7),
    (1, 33, 50, 9, 9),
    (3, 64, 96, 13, 11),
    (1, 300, 31, 3, 5),
    (2, 2048, 64, 7, 7),
    (8, 96, 40, 28, 28),
]


@pytest.fixture(autouse=True)
def _loaded():
    assert extension.load()


def activation(*size, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=random).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def pointwise(size, dtype, prologue):
    images, inner, outer, height, width = size
    x = activation(images, inner, height, width, dtype=dtype)
    weight = activation(outer, inner, 1, 1, dtype=torch.float32, seed=1) * inner**-0.5
    random = torch.Generator().manual_seed(2)
    bn = [torch.rand(inner, generator=random) - 0.3 for _ in range(4)] if prologue else [None] * 4
    return x, weight, bn


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_pointwise_convolutions(size, dtype, prologue, stride):
    x, weight, bn = pointwise(size, dtype, prologue)
    y, mean, var = native.conv_stats(x, weight, [stride] * 2, [0, 0], [1, 1], 1, *bn, True)
    z = x.float()
    if prologue:
        center, invstd, gamma, beta = (v[:, None, None] for v in bn)
        z = torch.relu((z - center) * (invstd * gamma) + beta).to(dtype)
    exact = F.conv2d(z.double(), weight.to(dtype).double(), stride=stride)
    assert y.shape == exact.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y.double() - exact).abs().max() <= CLOSE[dtype] * exact.abs().max()
    stored = y.double()  # statistics are those of the values that are stored
    torch.testing.assert_close(mean.double(), stored.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        var.double(), stored.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-7
    )
    alone, *nothing = native.conv_stats(x, weight, [stride] * 2, [0, 0], [1, 1], 1, *bn, False)
    assert torch.equal(alone, y)
    assert all(vector.numel() == 0 for vector in nothing)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_threads(dtype, two_threads):
    x, weight, bn = pointwise((8, 96, 40, 28, 28), dtype, prologue=True)
    arguments = (x, weight, [1, 1], [0, 0], [1, 1], 1, *bn, True)
    first = native.conv_stats(*arguments)
    for _ in range(5):
        assert all(map(torch.equal, native.conv_stats(*arguments), first))
    torch.set_num_threads(1)
    assert all(map(torch.equal, native.conv_stats(*arguments), first))


@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("size", [(2, 64, 96, 13, 8), (5, 65, 130, 9, 7), (8, 64, 256, 20, 20)])
def test_the_convolution_of_a_panel_at_hand_is_that_of_the_whole(size, kind):
    expand = expand_case(kind, *size, torch.bfloat16, bn=True)
    weight = activation(48, size[2], 1, 1, dtype=torch.float32, seed=3) * size[2] ** -0.5
    out, y, mean, var = native.expand_reduce(*expand, weight)
    assert torch.equal(out, native.expand(*expand))
    nothing = [None] * 4
    whole = native.conv_stats(out, weight, [1, 1], [0, 0], [1, 1], 1, *nothing, True)
    assert torch.equal(y, whole[0])
    torch.testing.assert_close(mean, whole[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, whole[2], rtol=1e-5, atol=1e-7)


# a period that vectors divide, with rows that do and do not fill it, and more than one stretch
@pytest.mark.parametrize("channels", [32, 64, 96, 256, 320])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_joins_in_whole_vectors(kind, relu, channels):
    for size in ((5, 7), (16, 16), (24, 23)):
        join = make_join(kind, torch.bfloat16, channels, relu=relu, images=3, size=size)
        ours, expected = launch_join(join, native), launch_join(join, reference)
        assert ours.keys() == expected.keys()
        for name, want in expected.items():
            scale = max(1.0, want.double().abs().max().item())
            error = (ours[name].double() - want.double()).abs().max().item()
            assert error <= CLOSE[torch.bfloat16] * scale, (name, size)


@pytest.mark.parametrize("channels", [32, 96, 320])
@pytest.mark.parametrize("pixels", [16, 129, 4096])
def test_statistics_in_whole_vectors(channels, pixels):
    y = activation(3, channels, pixels, 1, dtype=torch.bfloat16).add(5).to(torch.bfloat16)
    mean, var = native.bn_stats(y)
    exact = y.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=5e-7, atol=1e-7)
    torch.testing.assert_close(
        var.double(), exact.var((0, 2, 3), correction=0), rtol=2e-6, atol=1e-9
    )


@pytest.mark.parametrize("channels", [32, 64, 96])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_pooling_in_whole_vectors(channels, kernel, stride, padding):
    x = activation(2, channels, 13, 12, dtype=torch.bfloat16)
    x[0, :, 3, 4] = float("nan")
    x[1, :, 5:8, 5:8] = x[1, :, 5:6, 5:6]  # ties: the first place wins
    x[1, :, 0, 0] = -float("inf")
    x[0, :, 8, :2] = torch.tensor([-0.0, 0.0], dtype=torch.bfloat16)
    window = ([kernel] * 2, [stride] * 2, [padding] * 2)
    out, index = native.max_pool(x, *window)
    expected, expected_index = reference.max_pool(x, *window)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, expected_index)
    dout = activation(*out.shape, dtype=torch.bfloat16, seed=1)
    dx = native.max_pool_backward(dout, index, x.shape, *window)
    want = reference.max_pool_backward(dout, expected_index, x.shape, *window)
    torch.testing.assert_close(dx, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outer", "inner"), [(64, 256), (17, 33), (48, 48), (32, 130)])
def test_gradients_made_together_are_those_made_apart(
    outer, inner, dtype, residual, threads, two_threads
):
    torch.set_num_threads(threads)
    dout, y = (activation(5, outer, 21, 20, dtype=dtype, seed=seed) for seed in (0, 1))
    x, passed = (activation(5, inner, 21, 20, dtype=dtype, seed=seed) for seed in (2, 3))
    weight = activation(outer, inner, 1, 1, dtype=torch.float32, seed=4) * outer**-0.5
    random = torch.Generator().manual_seed(5)
    vectors = [torch.rand(outer, generator=random) + 0.5 for _ in range(6)]
    beside = [passed if residual else None, None, [1, 1], residual]

    def gradients(need_dx, need_dw):
        return native.chain_backward(
            dout, None, y, *vectors, True, x, weight, [1, 1], [0, 0], [1, 1], 1,
            *[None] * 4, *beside, need_dx, need_dw,
        )[:2]  # fmt: skip

    dx, dw = gradients(True, True)
    assert torch.equal(dx, gradients(True, False)[0])
    assert torch.equal(dw, gradients(False, True)[1])
    assert dx.abs().max() > 0
    assert dw.abs().max() > 0


# images, inputs, outputs, height, width; the first ones in several panels of an image, the last
# ones narrow or odd, for patches or oneDNN
LINES = [
    (2, 64, 64, 56, 56),
    (3, 32, 40, 25, 27),
    (2, 64, 7, 3, 24),
    (5, 32, 33, 1, 31),
    (1, 96, 17, 9, 250),
    (2, 64, 48, 6, 23),
    (2, 33, 48, 6, 30),
]


def weight_gradient_case(size, dtype):
    images, inner, outer, height, width = size
    x = activation(images, inner, height, width, dtype=dtype)
    dy = activation(images, outer, height, width, dtype=dtype, seed=1)
    weight = activation(outer, inner, 3, 3, dtype=torch.float32, seed=2)
    return dy, x, weight, [1, 1], [1, 1], [1, 1], 1, False, True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LINES)
def test_weight_gradients_of_lines_of_pixels(size, dtype):
    case = dy, x, weight, *_ = weight_gradient_case(size, dtype)
    _, dw = native.conv_backward(*case)
    exact = torch.nn.grad.conv2d_weight(x.double(), weight.shape, dy.double(), padding=1)
    assert (dw.dtype, dw.stride()) == (weight.dtype, weight.stride())
    assert (dw - exact).abs().max() <= CLOSE[dtype] * exact.abs().max()


def test_weight_gradients_of_lines_do_not_depend_on_threads(two_threads):
    case = weight_gradient_case((3, 32, 40, 25, 27), torch.bfloat16)
    _, first = native.conv_backward(*case)
    for threads in (1, 3):  # the last are more than there are groups of rows
        torch.set_num_threads(threads)
        assert torch.equal(native.conv_backward(*case)[1], first)
