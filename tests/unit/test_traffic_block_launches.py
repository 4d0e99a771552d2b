"""What the launchers of whole blocks declare, held against the addresses their kernels touch."""

from __future__ import annotations

import pytest
import torch
from helpers.touched import Touch, assert_declared
from parity import block_cases, moment_cases

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")

from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import tuned  # noqa: E402

SIZE = (2, 16, 40, 5, 7)  # images, narrow and wide channels, height, width


@pytest.fixture
def touch(monkeypatch):
    return Touch(monkeypatch)


@pytest.fixture(autouse=True)
def _triton():
    """Every kernel that there is, whatever the tables prefer."""
    with tuned.watching(lambda key, choice: choice._replace(provider="triton")):
        yield


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_moments(touch, bn, stride):
    case = block_cases.moments_case(*SIZE, torch.float32, bn=bn, stride=stride)
    assert_declared(touch(lambda: backend.moments(*case)), "moments_kernel")


@pytest.mark.parametrize("kind", block_cases.SHORTCUTS)
def test_expand(touch, kind):
    case = block_cases.expand_case(kind, *SIZE, torch.float32, bn=True)
    assert_declared(touch(lambda: backend.expand(*case)), "expand_kernel")


@pytest.mark.parametrize("kind", block_cases.SHORTCUTS)
def test_expand_reduce(touch, kind):
    case = block_cases.expand_case(kind, *SIZE, torch.float32, bn=True, next_channels=16)
    assert_declared(touch(lambda: backend.expand_reduce(*case)))


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_expand_backward(touch, bn, masked, stride):
    weight, data = block_cases.expand_backward_case(
        *SIZE, torch.float32, bn=bn, masked=masked, stride=stride
    )
    assert_declared(
        touch(lambda: backend.expand_backward_weight(*weight)), "expand_backward_weight_kernel"
    )
    assert_declared(
        touch(lambda: backend.expand_backward_data(*data)), "expand_backward_data_kernel"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["one rank", "ranks", "frozen", "no weight and bias"])
def test_between_the_passes_of_a_moment_form(touch, kind, dtype):
    # several tiles of every kernel, those on the edges not whole
    case = moment_cases.moments_and_weights(50, 70, 90, dtype, **moment_cases.KINDS[kind])
    for name, arguments in case.arguments.items():
        assert_declared(touch(lambda n=name, a=arguments: getattr(backend, n)(*a)))


@pytest.mark.parametrize("residual", [None, *block_cases.RESIDUALS])
@pytest.mark.parametrize("mask_by_x", [True, False])
def test_chain_backward_of_a_narrowing(touch, residual, mask_by_x):
    case = block_cases.chain_case(
        2, 40, 16, 5, 7, torch.float32, geometry="1x1", residual=residual, mask_by_x=mask_by_x
    )
    assert_declared(touch(lambda: backend.chain_backward(*case)))


@pytest.mark.parametrize("geometry", block_cases.PADDINGS)
@pytest.mark.parametrize("prologue", [True, False])
def test_chain_backward(touch, geometry, prologue):
    case = block_cases.chain_case(
        2, 16, 16, 7, 8, torch.float32, geometry=geometry, prologue=prologue
    )
    assert_declared(touch(lambda: backend.chain_backward(*case)))


def test_stem(touch):
    for case, operator in zip(
        block_cases.pool_case(2, 16, 8, 9, torch.float32, (3, 2, 1)),
        ("bn_max_pool", "bn_max_pool_backward_reduce", "bn_max_pool_backward"),
        strict=True,
    ):
        assert_declared(touch(lambda c=case, o=operator: getattr(backend, o)(*c)))
