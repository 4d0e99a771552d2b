"""`fastres.optimize` on a GPU: our kernel, cuDNN's fused convolutions and CUDA graphs."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from parity.oracle import ATOL, assert_parity

import fastres
from fastres.inference.convolution import Convolution

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is for CPU tensors"
    ),
]

if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    from fastres.backends import triton as backend
    from fastres.kernels import launch, tuned

KERNEL = "conv_bias_act_kernel"
# images, C in, C out, H, kernel, stride, padding, dilation
SHAPES = [
    (2, 64, 256, 56, 1, 1, 0, 1),
    (2, 256, 64, 28, 1, 2, 0, 1),
    (3, 65, 63, 13, 1, 3, 0, 1),
    (1, 1024, 2048, 7, 1, 1, 0, 1),
    (2, 64, 64, 28, 3, 1, 1, 1),
    (2, 128, 128, 28, 3, 2, 1, 1),
    (1, 17, 65, 13, 3, 3, 2, 2),
    (2, 3, 64, 32, 7, 2, 3, 1),
]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return fastres.resnet18(num_classes=10).cuda().eval()


def images(n: int = 4, size: int = 64) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=random).cuda()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_like_the_model(dtype):
    optimized = fastres.optimize(network(), images(), dtype=dtype)
    assert optimized.difference.relative <= optimized.difference.tolerance
    assert optimized(images(3, 47)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_graph_is_the_calls(dtype):
    eager = fastres.optimize(network(), images(), dtype=dtype)
    graphed = fastres.optimize(network(), images(), dtype=dtype, cuda_graph=True)
    first = graphed(images())
    kept = first.clone()
    torch.testing.assert_close(first, eager(images()), rtol=1e-2, atol=1e-2)
    graphed(images() * 2)
    assert torch.equal(first, kept)  # a copy, not the graph's memory
    with pytest.raises(ValueError, match="which the CUDA graph was captured with"):
        graphed(images(3))


@pytest.mark.parametrize("provider", ["triton", "cudnn"])
@pytest.mark.parametrize("end", [(True, True), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_convolution_matches_fp64(shape, dtype, end, provider):
    images, inner, outer, extent, kernel, *geometry = shape
    with_shortcut, relu = end
    torch.manual_seed(0)
    x = torch.randn(images, inner, extent, extent + 1, device="cuda").to(dtype)
    weight = torch.randn(outer, inner, kernel, kernel, device="cuda")
    weight = (weight / (inner * kernel * kernel) ** 0.5).to(dtype)
    bias = torch.randn(outer, device="cuda").to(dtype)
    shortcut = torch.randn_like(F.conv2d(x, weight, bias, *geometry)) if with_shortcut else None

    def in_torch(to: torch.dtype) -> torch.Tensor:
        out = F.conv2d(x.to(to), weight.to(to), bias.to(to), *geometry)
        out = out if shortcut is None else out + shortcut.to(to)
        return out.relu() if relu else out

    before = launch.launched[KERNEL]
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        tuned.provider(provider),
    ):
        pairs = [[value] * 2 for value in geometry]
        out = backend.conv_bias_act(x, weight, bias, shortcut, *pairs, 1, relu)
        torchs, exact = in_torch(dtype), in_torch(torch.float64)
    assert launch.launched[KERNEL] - before == (provider == "triton")
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_parity({"out": out}, {"out": torchs}, {"out": exact}, ATOL[dtype])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("provider", ["triton", "cudnn"])
def test_every_convolution_by_one_provider(provider, dtype):
    model = network()
    with tuned.provider(provider):
        optimized = fastres.optimize(model, images(), dtype=dtype)
        before = launch.launched[KERNEL]
        optimized(images())
    count = sum(isinstance(module, Convolution) for module in optimized.modules())
    assert launch.launched[KERNEL] - before == (count if provider == "triton" else 0)
    assert optimized.difference.relative <= optimized.difference.tolerance


def test_a_graph_and_another_stream_with_our_kernel():
    with tuned.provider("triton"):
        eager = fastres.optimize(network(), images(), dtype=torch.float16)
        graphed = fastres.optimize(network(), images(), dtype=torch.float16, cuda_graph=True)
        expected = eager(images())
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            found = eager(images())
        torch.cuda.synchronize()
    assert torch.equal(found, expected)
    assert torch.equal(graphed(images()), expected)
