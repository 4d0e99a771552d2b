"""The Triton kernels between a moment form's passes, in the interpreter, against fp64."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from parity.moment_cases import (
    KINDS,
    NAMES,
    SIZES,
    assert_same,
    case,
    check,
    check_a_large_mean,
    check_nan,
    check_rounding_of_the_weight,
    check_the_mixing,
    results,
    strided,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

import fastres  # noqa: E402
from fastres import layers  # noqa: E402
from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import launch, moment_gradients, moment_statistics  # noqa: E402

# the interpreter truncates to bf16: that is tested on a GPU
DTYPES = (torch.float32, torch.float16)
KERNELS = {
    "moment_statistics": ("moment_statistics_kernel", "moment_affine_kernel"),
    "moment_gradients": ("moment_gradients_kernel",),
    "moment_batch_gradients": (
        "moment_weight_kernel",
        "moment_mixing_kernel",
        "sum_rows_kernel",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_parity(size, dtype, kind, poison):
    found = case(size, dtype, kind)
    for name in found.arguments:
        check(backend, found, name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles_in_every_direction(dtype, monkeypatch, poison):
    small = {"BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_I": 16}
    monkeypatch.setattr(moment_statistics, "_TILE", moment_statistics._TILE | small)
    monkeypatch.setattr(moment_gradients, "_WEIGHT", moment_gradients._WEIGHT | small)
    for tile in ("_ROWS", "_MIXING"):
        changed = getattr(moment_gradients, tile) | {"BLOCK_N": 16, "BLOCK_K": 16}
        monkeypatch.setattr(moment_gradients, tile, changed)
    # more partial results than are added at once, and more rows of them than a program adds
    monkeypatch.setattr(moment_statistics, "_GROUP", 2)
    monkeypatch.setattr("fastres.kernels.sum_rows._MOST_ROWS", 5)
    for kind in ("one rank", "ranks", "frozen"):
        found = case((60, 70, 150), dtype, kind)
        for name in found.arguments:
            check(backend, found, name, dtype)


def test_how_many_kernels_a_layer_launches():
    """Two for the arithmetic of a forward, four for that of a backward; one rank or several."""
    for kind in ("one rank", "ranks"):
        found = case((40, 17, 65), torch.float16, kind)
        for name in NAMES:
            launch.launched.clear()
            results(backend, name, found.arguments[name])
            assert launch.launched == Counter(KERNELS[name])


def test_a_large_mean_does_not_cancel(poison):
    check_a_large_mean(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("module", [backend, reference], ids=["triton", "reference"])
def test_the_mixing_is_symmetric_and_the_constant_made_of_what_was_rounded(module, dtype):
    check_the_mixing(module, dtype)


@pytest.mark.parametrize("kind", ["one rank", "ranks", "frozen"])
def test_repeats_are_bitwise_equal_and_layouts_do_not_matter(kind):
    found = case((40, 17, 65), torch.float32, kind)
    for name, arguments in found.arguments.items():
        first = results(backend, name, arguments)
        assert_same(first, results(backend, name, arguments))
        assert_same(first, results(backend, name, strided(arguments)))


@pytest.mark.parametrize("module", [backend, reference], ids=["triton", "reference"])
def test_a_weight_is_rounded_to_the_activations_dtype(module):
    check_rounding_of_the_weight(module, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_serves_the_rest(dtype):
    found = case((40, 17, 65), torch.float32)
    for name in NAMES:
        arguments = [
            value.to(dtype)
            if isinstance(value, torch.Tensor) and (dtype == torch.float64 or index < 2)
            else value
            for index, value in enumerate(found.arguments[name])
        ]
        launch.launched.clear()
        ours, expected = results(backend, name, arguments), results(reference, name, arguments)
        assert not launch.launched
        assert all(torch.equal(ours[key], expected[key]) for key in ours)


def test_nan_reaches_what_it_reaches_in_torch():
    check_nan(backend)


@pytest.mark.parametrize("training", [True, False])
def test_a_run_of_bottlenecks(training):
    """Through autograd: a projection with a stride and an identity, both in moment form."""
    torch.manual_seed(0)
    down = layers.make_shortcut("B", 12, 32, 2, torch.nn.BatchNorm2d, fused=True)
    options = {"fused": True, "memory": "low"}
    run = layers.Stage(
        layers.Bottleneck(12, 8, 2, down, **options), layers.Bottleneck(32, 8, **options)
    ).train(training)
    for module in run.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    found = {}
    for name in ("triton", "reference"):
        x = torch.randn(2, 12, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        launch.launched.clear()
        run.zero_grad()
        with fastres.backend(name):
            out = run(x)
            out.square().sum().backward()
        found[name] = [out.detach(), x.grad] + [p.grad.clone() for p in run.parameters()]
        measured = 3 if training and name == "triton" else 0
        for kernel in ("moment_statistics", "moment_affine", "moment_weight", "moment_mixing"):
            assert launch.launched[f"{kernel}_kernel"] == measured, kernel
        assert launch.launched["moment_gradients_kernel"] == 3 * (name == "triton")
    for ours, expected in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
