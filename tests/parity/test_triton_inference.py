"""`fastres.optimize` through the Triton kernel, in the interpreter: which convolutions take it."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

import fastres  # noqa: E402
from fastres import backends  # noqa: E402
from fastres.inference.convolution import Convolution  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402
from fastres.layers import BasicBlock, Bottleneck  # noqa: E402

KERNEL = "conv_bias_act_kernel"


def projection(inplanes: int, planes: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes))


def network(block=Bottleneck, groups=1) -> nn.Module:
    """A narrow one with BN's vectors as training might leave them, in eval mode."""
    torch.manual_seed(0)
    out = 8 * block.expansion
    grouped = {"groups": groups, "base_width": 32} if groups > 1 else {}
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        block(8, 8, downsample=projection(8, out, 1), **grouped),
        block(out, 8, **grouped),
        block(out, 8, 2, projection(out, out, 2), **grouped),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(out, 5),
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return model


def images(*size: int) -> torch.Tensor:
    return torch.randn(size or (1, 3, 25, 31), generator=torch.Generator().manual_seed(1))


def convolutions(model: nn.Module) -> list[Convolution]:
    return [module for module in model.modules() if isinstance(module, Convolution)]


def launches(run) -> tuple[torch.Tensor, int]:
    """The result of `run`, and how often our kernel was launched."""
    before = launch.launched[KERNEL]
    return run(), launch.launched[KERNEL] - before


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_every_convolution_takes_the_kernel(block, dtype):
    model = network(block)
    with fastres.backend("triton"), tuned.provider("triton"), torch.no_grad():
        optimized = fastres.optimize(model, images(), dtype=dtype)
        count = len(convolutions(optimized))
        assert count == sum(isinstance(module, nn.Conv2d) for module in model.modules())
        for x in (images(), images(2, 3, 24, 20)):
            backends.reset_counts()
            found, launched = launches(lambda x=x: optimized(x))
            assert launched == count
            assert backends.counts()["conv_bias_act:triton"] == count
            tolerance = 1e-5 if dtype is None else 1e-2
            expected = model(x)
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()
            assert found.dtype == torch.float32
    assert optimized.difference.relative <= tolerance


def test_the_shipped_tables_take_it_for_projections_only(monkeypatch):
    monkeypatch.setattr("fastres.backends.triton_inference.uses_tf32", lambda: True)
    model = network()
    with fastres.backend("triton"):
        optimized = fastres.optimize(model, images())
        _, launched = launches(lambda: optimized(images()))
    without_relu = [conv for conv in convolutions(optimized) if not conv.relu]
    assert launched == len(without_relu) == 2
    assert optimized.difference.relative <= 1e-5


def test_groups_and_fp64_are_left_to_torch():
    model = network(groups=2)
    with fastres.backend("triton"), tuned.provider("triton"):
        optimized = fastres.optimize(model, images())
        _, launched = launches(lambda: optimized(images()))
        assert launched == sum(conv.groups == 1 for conv in convolutions(optimized))
        optimized = fastres.optimize(network().double(), images().double())
        assert launches(lambda: optimized(images().double()))[1] == 0


def test_without_triton_nothing_of_it_is_launched():
    optimized = fastres.optimize(network(), images())
    assert launches(lambda: optimized(images()))[1] == 0


def test_what_was_prepared_for_triton_runs_without_it():
    with fastres.backend("triton"), tuned.provider("triton"):
        optimized = fastres.optimize(network(), images())
        expected = optimized(images())
    found, launched = launches(lambda: optimized(images()))
    assert launched == 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
