"""`fastres.optimize` on a GPU: cuDNN's fused convolutions and CUDA graphs."""

from __future__ import annotations

import pytest
import torch

import fastres

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
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
