"""The Triton convolutions in the interpreter, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
from parity.oracle import ATOL, assert_parity, convolve

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402

# the interpreter's bf16 product is not a product: bf16 is tested on a GPU
DTYPES = (torch.float32, torch.float16)
# images, C in, C out, H, kernel, stride, padding, dilation
POINTWISE = [
    (2, 1, 3, 5, 1, 1, 0, 1),
    (1, 17, 65, 7, 1, 1, 0, 1),
    (3, 64, 1, 4, 1, 1, 0, 1),
    (2, 65, 63, 8, 1, 2, 0, 1),
    (1, 3, 17, 7, 1, 3, 0, 2),
]
SPATIAL = [
    (1, 3, 64, 13, 7, 2, 3, 1),
    (2, 17, 3, 8, 3, 1, 1, 1),
    (1, 65, 17, 7, 3, 2, 1, 1),
    (3, 1, 5, 13, 3, 3, 2, 2),
    (1, 4, 4, 5, 3, 1, 2, 2),
    (2, 4, 6, 4, 1, 1, 1, 1),
    (1, 5, 7, 6, 2, 1, 0, 1),
    (1, 2, 3, 3, 3, 1, 1, 1),
]
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make(shape, dtype, prologue):
    images, inner, outer, extent, kernel, *_ = shape
    random = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(images, inner, extent, extent + 1, generator=random).to(dtype)
    weight = torch.randn(outer, inner, kernel, kernel, generator=random)
    weight = (weight / (inner * kernel * kernel) ** 0.5).to(dtype)
    if not prologue:
        return x, weight, None
    parameters = [torch.randn(inner, generator=random) for _ in range(4)]
    parameters[1] = parameters[1].abs() + 0.5
    return x, weight, parameters


def check(shape, dtype, prologue):
    stride, padding, dilation = shape[5:]
    x, weight, parameters = make(shape, dtype, prologue)
    y, mean, var = backend.conv_stats(
        x, weight, [stride] * 2, [padding] * 2, [dilation] * 2, 1, *(parameters or [None] * 4), True
    )
    arguments = (x, weight, stride, padding, dilation, parameters)
    torchs, exact = convolve(*arguments, dtype), convolve(*arguments, torch.float64)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity({"y": y, "mean": mean, "var": var}, torchs, exact, ATOL[dtype])
    # they are the statistics of y as it is stored
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", POINTWISE + SPATIAL, ids=str)
def test_convolution_matches_fp64(shape, dtype, prologue, poison):
    kernel = "conv1x1_kernel" if shape in POINTWISE else "conv3x3_kernel"
    before = launch.launched[kernel]
    with tuned.provider("triton"):
        check(shape, dtype, prologue)
    assert launch.launched[kernel] == before + 1


@pytest.mark.parametrize("shape", [(2, 40, 37, 5, 1, 1, 0, 1), (1, 20, 37, 6, 3, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("prologue", [False, True])
def test_many_tiles_in_every_direction(shape, prologue, poison, monkeypatch):
    choice = tuned.Choice("triton", SMALL)
    monkeypatch.setattr(tuned, "choose", lambda *args, **kwargs: choice)
    check(shape, torch.float32, prologue)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torchs_convolution_serves_the_rest(dtype, groups, poison):
    x, weight = torch.randn(2, 4, 5, 5).to(dtype), torch.randn(6, 4 // groups, 3, 3).to(dtype)
    prologue = [torch.randn(4), torch.rand(4) + 0.5, None, None]
    before = launch.launched["conv3x3_kernel"]
    y, mean, var = backend.conv_stats(x, weight, [2, 2], [1, 1], [1, 1], groups, *prologue, True)
    assert launch.launched["conv3x3_kernel"] == before
    z = backend.bn_apply(x, *prologue, None, None, None, None, None, 1, True)
    assert torch.equal(y, torch.conv2d(z, weight, None, 2, 1, 1, groups))
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("name", ["triton", "cudnn"])
def test_statistics_nobody_asked_for_are_empty(name, kernel):
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(6, 4, kernel, kernel)
    with tuned.provider(name):
        y, mean, var = backend.conv_stats(
            x, weight, [1, 1], [0, 0], [1, 1], 1, None, None, None, None, False
        )
    torch.testing.assert_close(y, torch.conv2d(x, weight))
    assert mean.shape == var.shape == (0,)
    assert mean.dtype == torch.float32


@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batch(kernel):
    x, weight = torch.randn(0, 4, 5, 5), torch.randn(6, 4, kernel, kernel)
    with tuned.provider("triton"):
        y, mean, var = backend.conv_stats(
            x, weight, [1, 1], [0, 0], [1, 1], 1, None, None, None, None, True
        )
    assert y.shape == (0, 6, 6 - kernel, 6 - kernel)
    assert torch.equal(mean, torch.zeros(6))
    assert torch.equal(var, torch.zeros(6))


@pytest.mark.parametrize("kernel", [1, 3])
def test_padding_is_zero_after_the_prologue(kernel):
    # relu(bn(0)) is 5 here: a prologue on the padding would show
    x, weight = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, kernel, kernel)
    prologue = [torch.zeros(2), torch.ones(2), torch.ones(2), torch.full((2,), 5.0)]
    with tuned.provider("triton"):
        y, _, _ = backend.conv_stats(x, weight, [1, 1], [1, 1], [1, 1], 1, *prologue, True)
    assert torch.equal(y, torch.conv2d(torch.full_like(x, 5.0), weight, padding=1))


@pytest.mark.parametrize("kernel", [1, 3])
def test_large_mean_in_the_epilogue(kernel):
    x = (torch.randn(2, 4, 9, 9) + 1e4).float()
    weight = torch.zeros(4, 4, kernel, kernel)
    weight[range(4), range(4), kernel // 2, kernel // 2] = 1.0  # y is x, inside
    with tuned.provider("triton"):
        y, mean, var = backend.conv_stats(
            x, weight, [1, 1], [0, 0], [1, 1], 1, None, None, None, None, True
        )
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    # two tiles, whose means are rounded to 1e-3
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=3e-7, atol=0)


@pytest.mark.parametrize("shape", [POINTWISE[3], SPATIAL[2]], ids=str)
def test_repeats_are_bitwise_equal(shape):
    x, weight, parameters = make(shape, torch.float32, True)
    arguments = ([shape[5]] * 2, [shape[6]] * 2, [shape[7]] * 2, 1, *parameters, True)
    with tuned.provider("triton"):
        first = backend.conv_stats(x, weight, *arguments)
        again = backend.conv_stats(x, weight, *arguments)
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("kernel", [1, 3])
def test_nan_reaches_exactly_the_outputs_that_saw_it(kernel):
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(2, 3, kernel, kernel)
    x[0, 1, 2, 3] = torch.nan
    with tuned.provider("triton"):
        y, mean, var = backend.conv_stats(
            x, weight, [1, 1], [kernel // 2] * 2, [1, 1], 1, None, None, None, None, True
        )
    expected = torch.conv2d(x, weight, padding=kernel // 2)
    assert torch.equal(y.isnan(), expected.isnan())
    assert mean.isnan().all()
    assert var.isnan().all()


def test_layouts_of_weight_and_input_do_not_matter():
    x, weight = torch.randn(2, 5, 6, 6), torch.randn(4, 5, 3, 3)
    arguments = ([1, 1], [1, 1], [1, 1], 1, None, None, None, None, True)
    with tuned.provider("triton"):
        expected = backend.conv_stats(x, weight, *arguments)
        ours = backend.conv_stats(
            x.to(memory_format=torch.channels_last),
            weight.to(memory_format=torch.channels_last),
            *arguments,
        )
    assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_conv_backward(wanted, layout):
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    weight = torch.randn(6, 4, 3, 3).to(memory_format=layout).requires_grad_()
    y = torch.conv2d(x, weight, None, 2, 1)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight), dy)
    ours = backend.conv_backward(
        dy, x.detach(), weight.detach(), [2, 2], [1, 1], [1, 1], 1, *wanted
    )
    for want, mine, theirs in zip(wanted, ours, expected, strict=True):
        if want:
            torch.testing.assert_close(mine, theirs)
        else:
            assert mine.shape == (0,)
    if wanted[0]:
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
    if wanted[1]:
        assert ours[1].stride() == weight.stride()
