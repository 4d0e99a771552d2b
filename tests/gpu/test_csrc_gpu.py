"""The CUDA C++ operators on a GPU against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastres import extension

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    # batch, height, width, channels, out_channels, stride
    (2, 32, 32, 16, 32, 2),
    (3, 7, 13, 8, 16, 2),
    (2, 8, 8, 3, 17, 3),
    (1, 1, 1, 64, 65, 2),
    (4, 56, 56, 64, 64, 1),
    (2, 5, 5, 1, 2050, 2),
    (0, 8, 8, 4, 8, 2),
]


@pytest.fixture(scope="module")
def native():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if not extension.has_cuda():
        pytest.skip(extension.cuda_unavailable_reason())
    return torch.ops.fastres_native


def activation(*size: int, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(size, device="cuda").to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def plain_pad(x: torch.Tensor, out_channels: int, stride: int) -> torch.Tensor:
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, out_channels - x.shape[1]))


def assert_dense(tensor: torch.Tensor) -> None:
    assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pad_shortcut_is_exact(native, shape, dtype):
    batch, height, width, channels, out_channels, stride = shape
    x = activation(batch, channels, height, width, dtype=dtype).requires_grad_()
    expected = plain_pad(x, out_channels, stride)
    dout = activation(*expected.shape, dtype=dtype)
    (expected_dx,) = torch.autograd.grad(expected, x, dout)
    out = native.pad_shortcut(x.detach(), out_channels, stride)
    dx = native.pad_shortcut_backward(dout, x.shape, stride)
    assert torch.equal(out, expected)
    assert torch.equal(dx, expected_dx)
    assert_dense(out)
    assert_dense(dx)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_join_within_twice_the_error_of_torch(native, shape, dtype, relu, frozen):
    batch, height, width, channels, out_channels, stride = shape
    shortcut = activation(batch, channels, height, width, dtype=dtype)
    y = activation(*plain_pad(shortcut, out_channels, stride).shape, dtype=dtype)
    dout = activation(*y.shape, dtype=dtype)
    vectors = [torch.randn(out_channels, device="cuda") for _ in range(5)]
    mean, weight, bias, mean_g, mean_gx = vectors
    invstd = torch.rand(out_channels, device="cuda") + 0.5

    out = native.bn_apply_pad(y, mean, invstd, weight, bias, shortcut, stride, relu)
    means = (None, None) if frozen else (mean_g, mean_gx)
    dy, dshortcut = native.bn_backward_pad(
        dout, out if relu else None, y, mean, invstd, weight, *means, shortcut.shape, stride, relu
    )
    for tensor in (out, dy, dshortcut):
        assert tensor.dtype == dtype
        assert_dense(tensor)

    def by_torch(to: torch.dtype) -> list[torch.Tensor]:
        """out, dy and dshortcut in `to`, with the mask of the operator's own output."""
        column = {
            name: values.to(to)[:, None, None]
            for name, values in zip("mwbgxi", (*vectors, invstd), strict=True)
        }
        xhat = (y.to(to) - column["m"]) * column["i"]
        total = xhat * column["w"] + column["b"] + plain_pad(shortcut.to(to), out_channels, stride)
        gradient = dout.to(to) * (~(out <= 0)).to(to) if relu else dout.to(to)
        centered = gradient if frozen else gradient - column["g"] - xhat * column["x"]
        taken = torch.zeros(shortcut.shape, dtype=to, device="cuda")
        taken[:, :, ::stride, ::stride] = gradient[:, :channels]
        return [total.relu() if relu else total, column["w"] * column["i"] * centered, taken]

    for ours, torchs, exact in zip(
        (out, dy, dshortcut), by_torch(dtype), by_torch(torch.float64), strict=True
    ):
        if exact.numel():
            error = (ours.double() - exact).abs().max()
            rounding = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
            allowed = 2 * (torchs.double() - exact).abs().max() + rounding
            assert error <= allowed


def test_unwanted_shortcut_gradient_is_empty(native):
    y = activation(2, 8, 4, 4, dtype=torch.float32)
    vector = torch.ones(8, device="cuda")
    _, dshortcut = native.bn_backward_pad(
        y, None, y, vector, vector, None, None, None, [], 2, False
    )
    assert dshortcut.shape == (0,)


def test_nchw_and_sliced_input(native):
    x = torch.randn(2, 16, 9, 9, device="cuda")
    for view in (x, x[:, 3:11], x[:, :, 1:, 2:], x.transpose(2, 3)):
        out = native.pad_shortcut(view, 32, 2)
        assert torch.equal(out, plain_pad(view, 32, 2))
        assert_dense(out)


def test_runs_on_the_current_stream(native):
    x = activation(8, 64, 56, 56, dtype=torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        shifted = x + 1
        out = native.pad_shortcut(shifted, 128, 2)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, plain_pad(x + 1, 128, 2))


def test_graph_capture(native):
    x = activation(4, 16, 8, 8, dtype=torch.float16)
    native.pad_shortcut(x, 32, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = native.pad_shortcut(x, 32, 2)
    x.normal_()
    graph.replay()
    assert torch.equal(out, plain_pad(x, 32, 2))


def test_more_than_2_to_the_31_elements(native):
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of GPU memory")
    x = torch.empty(
        (17, 64, 1024, 1024), device="cuda", dtype=torch.float16, memory_format=torch.channels_last
    )
    x.fill_(1)[-1] = 2
    out = native.pad_shortcut(x, 128, 1)
    assert out.numel() > 2**31
    assert (out[-1, :64] == 2).all()
    assert not out[-1, 64:].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op, x: op.pad_shortcut(x, 3, 2), "out_channels must be at least the input's 4"),
        (lambda op, x: op.pad_shortcut(x, 8, 0), "stride must be at least 1, got 0"),
        (lambda op, x: op.pad_shortcut(x.double(), 8, 2), "dtype must be float32"),
        (lambda op, x: op.pad_shortcut_backward(x, [2, 2, 9, 9], 2), "dout must be"),
    ],
)
def test_bad_arguments(native, call, message):
    with pytest.raises(RuntimeError, match=message):
        call(native, activation(2, 4, 6, 6, dtype=torch.float32))
