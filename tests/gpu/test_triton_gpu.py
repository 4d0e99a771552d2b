"""The Triton backend on a GPU: parity, streams, graphs, large tensors, repeats."""

from __future__ import annotations

import os

import pytest
import torch
from parity.oracle import (
    ATOL,
    KINDS,
    assert_parity,
    convolve,
    launch_join,
    make_join,
    run_join,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is for CPU tensors"
    ),
]

if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    from fastres.backends import triton as backend
    from fastres.kernels import tuned

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# images, C in, C out, H, kernel, stride, padding, dilation
SHAPES = [
    (2, 64, 256, 56, 1, 1, 0, 1),
    (2, 256, 64, 28, 1, 2, 0, 1),
    (3, 65, 63, 13, 1, 3, 0, 1),
    (4, 1024, 2048, 7, 1, 1, 0, 1),
    (2, 64, 64, 28, 3, 1, 1, 1),
    (2, 128, 128, 28, 3, 2, 1, 1),
    (1, 17, 65, 13, 3, 3, 2, 2),
    (2, 3, 64, 32, 7, 2, 3, 1),
]


@pytest.fixture(autouse=True)
def exact_fp32():
    """fp32 products in fp32, so that parity in fp32 is not judged by TF32's error; seeded."""
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        yield


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 17, 63, 64, 65, 256])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_join_matches_fp64(kind, dtype, channels, relu, frozen):
    join = make_join(
        kind, dtype, channels, images=3, size=(13, 7), relu=relu, frozen=frozen, device="cuda"
    )
    ours = launch_join(join, backend)
    assert_parity(ours, run_join(join, dtype), run_join(join, torch.float64), ATOL[dtype])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("s_channels", [16, 31, 32])
def test_padded_shortcut_matches_fp64(s_channels, stride):
    join = make_join("pad", torch.float16, 32, stride=stride, s_channels=s_channels, device="cuda")
    ours, dtype = launch_join(join, backend), torch.float16
    assert_parity(ours, run_join(join, dtype), run_join(join, torch.float64), ATOL[dtype])


def convolution(shape, dtype, prologue):
    images, inner, outer, extent, kernel, *_ = shape
    torch.manual_seed(sum(shape))
    x = torch.randn(images, inner, extent, extent, device="cuda").to(dtype)
    weight = torch.randn(outer, inner, kernel, kernel, device="cuda")
    weight = (weight / (inner * kernel * kernel) ** 0.5).to(dtype)
    parameters = [torch.randn(inner, device="cuda") for _ in range(4)] if prologue else None
    if parameters:
        parameters[1] = parameters[1].abs() + 0.5
    return x.contiguous(memory_format=torch.channels_last), weight, parameters


@pytest.mark.parametrize("name", ["triton", "cudnn"])
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_matches_fp64(shape, dtype, prologue, name):
    stride, padding, dilation = shape[5:]
    x, weight, parameters = convolution(shape, dtype, prologue)
    with tuned.provider(name):
        y, mean, var = backend.conv_stats(
            x, weight, [stride] * 2, [padding] * 2, [dilation] * 2, 1,
            *(parameters or [None] * 4), True,
        )  # fmt: skip
    arguments = (x, weight, stride, padding, dilation, parameters)
    torchs, exact = convolve(*arguments, dtype), convolve(*arguments, torch.float64)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity({"y": y, "mean": mean, "var": var}, torchs, exact, ATOL[dtype])


@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[4:5], ids=str)
def test_tf32_only_where_torch_allows_it(shape):
    x, weight, _ = convolution(shape, torch.float32, False)
    stride, padding, dilation = shape[5:]
    geometry = ([stride] * 2, [padding] * 2, [dilation] * 2, 1, None, None, None, None, True)
    exact = convolve(x, weight, stride, padding, dilation, None, torch.float64)["y"]

    def error():
        with tuned.provider("triton"):
            y = backend.conv_stats(x, weight, *geometry)[0]
        return (y.double() - exact).abs().max().item()

    in_fp32 = error()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        in_tf32 = error()
    assert in_fp32 < 1e-5 < in_tf32 < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_survive_a_large_mean(dtype):
    shift = 1e4 if dtype == torch.float32 else 30.0  # what fp16 and bf16 still resolve
    y = (torch.randn(16, 64, 56, 56, device="cuda", dtype=torch.float64) + shift).to(dtype)
    y = y.contiguous(memory_format=torch.channels_last)
    mean, var = backend.bn_stats(y)
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool_equals_torchs(dtype):
    x = torch.randint(-9, 9, (4, 65, 57, 56), device="cuda").to(dtype)  # with ties
    x[0, 0, 2, 3] = torch.nan
    geometry = ([3, 3], [2, 2], [1, 1])
    leaf = x.clone().requires_grad_()
    expected = torch.nn.functional.max_pool2d(leaf, 3, 2, 1)
    out, index = backend.max_pool(x, *geometry)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=0, equal_nan=True)
    dout = torch.randint(-3, 4, out.shape, device="cuda").to(dtype)
    expected.backward(dout)
    assert torch.equal(backend.max_pool_backward(dout, index, list(x.shape), *geometry), leaf.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_repeats_are_bitwise_equal(kind):
    join = make_join(kind, torch.bfloat16, 64, images=4, size=(28, 28), device="cuda")
    first = launch_join(join, backend)
    for _ in range(50):
        again = launch_join(join, backend)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4]], ids=str)
def test_fifty_convolutions_are_bitwise_equal(shape):
    x, weight, parameters = convolution(shape, torch.bfloat16, True)
    arguments = ([shape[5]] * 2, [shape[6]] * 2, [shape[7]] * 2, 1, *parameters, True)
    with tuned.provider("triton"):
        first = backend.conv_stats(x, weight, *arguments)
        for _ in range(50):
            assert all(map(torch.equal, first, backend.conv_stats(x, weight, *arguments)))


def test_kernels_run_on_the_current_stream():
    join = make_join("bn", torch.float16, 64, size=(28, 28), device="cuda")
    expected = launch_join(join, backend)
    busy = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    original = join.y.clone()
    join.y.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):  # a launch on another stream would overtake this and see zeros
            busy = busy @ busy * 1e-2
        join.y.copy_(original)
        ours = launch_join(join, backend)
    stream.synchronize()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_captured_in_a_graph(kind):
    join = make_join(kind, torch.bfloat16, 64, size=(14, 14), device="cuda")
    other = make_join(kind, torch.bfloat16, 64, size=(14, 14), device="cuda", seed=1)
    x, weight, parameters = convolution(SHAPES[0], torch.bfloat16, True)
    arguments = ([1, 1], [0, 0], [1, 1], 1, *parameters, True)

    def step():
        with tuned.provider("triton"):
            y, mean, var = backend.conv_stats(x, weight, *arguments)
        return launch_join(join, backend) | {"y": y, "mean": mean, "var": var}

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    join.y.copy_(other.y)
    join.dout.copy_(other.dout)
    graph.replay()
    torch.cuda.synchronize()
    expected = step()
    assert all(torch.equal(captured[name], expected[name]) for name in expected)


def test_more_than_two_to_the_31_elements():
    images, channels, extent = 170, 256, 224
    size = (images, channels, extent, extent)
    needed = 5 * images * channels * extent * extent * 2
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    y = torch.empty(size, dtype=torch.float16, device="cuda", memory_format=torch.channels_last)
    assert y.numel() > 2**31
    y.normal_()
    mean, var = backend.bn_stats(y)
    tail = y[-1:]
    invstd = (var + 1e-5).rsqrt()
    out = backend.bn_apply(y, mean, invstd, None, None, y, None, None, None, None, 1, True)
    last = backend.bn_apply(tail, mean, invstd, None, None, tail, None, None, None, None, 1, True)
    assert torch.equal(out[-1:], last)
    assert (var - 1).abs().max() < 1e-2
    sums = backend.bn_backward_reduce(y, out, y, mean, invstd, None, None, None, None, None, True)
    assert all(total.isfinite().all() for total in sums[:2])
    arguments = (mean, invstd, None, None, mean, mean, None, None, None, None, None)
    dy, ds = backend.bn_backward(y, out, y, *arguments, list(size), 1, True)
    last_dy, last_ds = backend.bn_backward(
        tail, out[-1:], tail, *arguments, list(tail.shape), 1, True
    )
    assert torch.equal(dy[-1:], last_dy)
    assert torch.equal(ds[-1:], last_ds)
    del dy, ds, sums
    weight = torch.randn(64, channels, 1, 1, dtype=torch.float16, device="cuda")
    with tuned.provider("triton"):
        geometry = ([1, 1], [0, 0], [1, 1], 1, None, None, None, None, True)
        narrow = backend.conv_stats(y, weight, *geometry)[0]
        assert torch.equal(narrow[-1:], backend.conv_stats(tail, weight, *geometry)[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_kernels_run_on_their_tensors_device():
    join = make_join("identity", torch.float16, 64, device="cuda:1")
    with torch.cuda.device(0):
        ours = launch_join(join, backend)
    expected, exact = run_join(join, torch.float16), run_join(join, torch.float64)
    assert_parity(ours, expected, exact, ATOL[torch.float16])
