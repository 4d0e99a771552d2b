"""The backward kernels of a link of any kernel size, a kernel for each gradient, against fp64."""

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

DTYPES = (torch.float32, torch.float16)
KERNELS = ("conv3x3_backward_data_kernel", "conv3x3_backward_weight_kernel")
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 1}
SPATIAL = Case(kernel=3, padding=1)
LINKS = [
    SPATIAL,
    varied(SPATIAL, prologue=True),
    varied(SPATIAL, prologue=True, stride=2, size=(7, 8)),
    varied(SPATIAL, stride=2, residual="strided", mask_by_x=True, size=(8, 7)),
    varied(SPATIAL, dilation=2, padding=2, residual="same", residual_mask=True, mask="out"),
    varied(SPATIAL, residual="wider", mask_by_x=True, frozen=True),
    varied(SPATIAL, padding=0, prologue=True, affine=False, mask="none"),
    Case(kernel=2, stride=3, prologue=True),
    Case(stride=2, residual="strided", mask_by_x=True),
    Case(prologue=True),
]


@pytest.fixture
def ours():
    """A kernel of ours for each gradient; both must have been launched."""
    before = {name: launch.launched[name] for name in KERNELS}
    with tuned.provider("triton"):
        yield
    assert all(launch.launched[name] > count for name, count in before.items())


def configured(monkeypatch, **changes):
    """Give the kernels small blocks and few programs, and these settings."""
    choose = tuned.choose

    def chosen(operator, *args, **kwargs):
        if operator not in ("conv_backward_data", "conv_backward_weight"):
            return choose(operator, *args, **kwargs)
        programs = {"programs": 12} if operator == "conv_backward_weight" else {}
        return tuned.Choice("triton", SMALL | programs | changes)

    monkeypatch.setattr(tuned, "choose", chosen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LINKS, ids=str)
def test_links_from_a_stored_dy(case, dtype, ours, poison):
    check(backend, reference, case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LINKS, ids=str)
def test_links_whose_dy_is_formed_on_the_fly(case, dtype, monkeypatch, ours, poison):
    configured(monkeypatch)
    before = launch.launched["bn_backward_kernel"]
    check(backend, reference, varied(case, images=1), dtype)
    assert launch.launched["bn_backward_kernel"] == before


@pytest.mark.parametrize(("outer", "inner"), [(1, 3), (20, 33)])
@pytest.mark.parametrize("prologue", [False, True])
def test_many_tiles_in_every_direction(outer, inner, prologue, monkeypatch, ours, poison):
    configured(monkeypatch)
    case = Case(kernel=2, padding=1, outer=outer, inner=inner, prologue=prologue, size=(3, 3))
    check(backend, reference, case, torch.float32)


@pytest.mark.parametrize("library", KERNELS)
@pytest.mark.parametrize("prologue", [False, True])
def test_a_provider_for_each_gradient(library, prologue, monkeypatch, poison):
    choose = tuned.choose

    def chosen(operator, *args, **kwargs):
        choice = choose(operator, *args, **kwargs)
        if not operator.startswith("conv_backward"):
            return choice
        ours = library.removeprefix("conv3x3_").removesuffix("_kernel") not in operator
        return choice._replace(provider="triton" if ours else "cudnn")

    monkeypatch.setattr(tuned, "choose", chosen)
    before = {name: launch.launched[name] for name in KERNELS}
    check(backend, reference, varied(SPATIAL, prologue=prologue), torch.float32)
    for name, count in before.items():
        assert launch.launched[name] - count == (name != library)


def test_wide_sums_take_two_levels(monkeypatch, ours, poison):
    # 70 row tiles, more than one group of partial sums
    configured(monkeypatch)
    case = Case(inner=2, outer=2, images=5, size=(14, 16), prologue=True)
    check(backend, reference, case, torch.float32)
