"""The backward kernels of a 1x1 link, and the composed path for any link, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
from parity.chain_cases import Case, check, varied

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402

# the interpreter's bf16 product is not a product: bf16 is tested on a GPU
DTYPES = (torch.float32, torch.float16)
RESIDUALS = ("none", "same", "strided", "wider")
JOINED = Case(residual="same", mask_by_x=True)


@pytest.fixture
def one_pass():
    """The one kernel for both gradients; it must have been launched."""
    before = launch.launched["reduce_backward_kernel"]
    with tuned.provider("triton"):
        yield
    assert launch.launched["reduce_backward_kernel"] > before


@pytest.fixture
def small(monkeypatch):
    """Small blocks and few programs, so that every loop and every mask is met."""
    config = {
        "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1, "programs": 6,
    }  # fmt: skip
    choose = tuned.choose

    def chosen(operator, *args, **kwargs):
        if operator == "conv1x1_backward":
            return tuned.Choice("triton", config)
        return choose(operator, *args, **kwargs)

    monkeypatch.setattr(tuned, "choose", chosen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("mask_by_x", [False, True])
def test_one_pass_joins(residual, mask_by_x, dtype, one_pass, poison):
    case = Case(residual=residual, mask_by_x=mask_by_x, residual_mask=mask_by_x, size=(5, 7))
    check(backend, reference, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["recomputed", "out", "none"])
@pytest.mark.parametrize("frozen", [False, True])
def test_one_pass_forms_dy(mask, frozen, dtype, one_pass, poison):
    check(backend, reference, varied(JOINED, mask=mask, frozen=frozen, affine=not frozen), dtype)


@pytest.mark.parametrize(("outer", "inner"), [(1, 3), (17, 65), (3, 1), (31, 33), (32, 48)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_at_every_width(outer, inner, dtype, small, one_pass, poison):
    check(backend, reference, varied(JOINED, outer=outer, inner=inner, images=3), dtype)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_one_pass_over_many_tiles(residual, small, one_pass, poison):
    case = Case(outer=20, inner=37, images=3, size=(7, 8), residual=residual, residual_mask=True)
    check(backend, reference, case, torch.float32)


def test_one_pass_from_a_stored_dy(monkeypatch, one_pass, poison):
    choose = tuned.choose

    def stored(operator, *args, **kwargs):
        choice = choose(operator, *args, **kwargs)
        if operator != "conv1x1_backward":
            return choice
        return tuned.Choice("triton", choice.config | {"stored": 1})

    monkeypatch.setattr(tuned, "choose", stored)
    check(backend, reference, JOINED, torch.float16)


def test_more_channels_than_a_program_keeps_go_by_direction(poison):
    before = dict(launch.launched)
    with tuned.provider("triton"):
        check(backend, reference, varied(JOINED, outer=70, inner=6, size=(3, 3)), torch.float32)
    after = launch.launched
    assert after["reduce_backward_kernel"] == before.get("reduce_backward_kernel", 0)
    for name in ("conv3x3_backward_data_kernel", "conv3x3_backward_weight_kernel"):
        assert after[name] == before.get(name, 0) + 1


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_one_gradient_alone_is_computed_alone(wanted, poison):
    case = varied(JOINED, need_dx=wanted[0], need_dw=wanted[1])
    before = dict(launch.launched)
    with tuned.provider("triton"):
        results = check(backend, reference, case, torch.float32)
    assert launch.launched["reduce_backward_kernel"] == before.get("reduce_backward_kernel", 0)
    assert results["dx"].shape == ((2, 7, 5, 6) if wanted[0] else (0,))
    assert results["dw"].shape == ((5, 7, 1, 1) if wanted[1] else (0,))
