"""The path that serves any link: dy written, torch's convolution, a kernel for the end of dx."""

from __future__ import annotations

import os

import pytest
import torch
from parity.chain_cases import Case, check, make, varied

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.backends import triton_layers as layers  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402

EVERY_DTYPE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SPATIAL = Case(kernel=3, padding=1)
LINKS = [
    Case(),
    Case(stride=2, residual="strided"),
    Case(prologue=True),
    SPATIAL,
    varied(SPATIAL, prologue=True),
    varied(SPATIAL, stride=2, prologue=True, mask="out"),
    varied(SPATIAL, stride=2, residual="strided", mask_by_x=True),
    varied(SPATIAL, dilation=2, padding=2, residual="wider", residual_mask=True),
    varied(SPATIAL, groups=2, outer=6, inner=4, prologue=True),
    varied(SPATIAL, groups=4, outer=8, inner=4, residual="same", mask_by_x=True, frozen=True),
    Case(kernel=2, stride=3, residual="same", mask="none"),
]


@pytest.fixture
def composed():
    """torch's convolutions, whatever the tables say."""
    before = {name: launch.launched[name] for name in MATRIX_KERNELS}
    with tuned.provider("cudnn"):
        yield
    assert before == {name: launch.launched[name] for name in MATRIX_KERNELS}


MATRIX_KERNELS = (
    "reduce_backward_kernel",
    "conv3x3_backward_data_kernel",
    "conv3x3_backward_weight_kernel",
)


@pytest.mark.parametrize("case", LINKS, ids=str)
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_any_link(case, dtype, composed, poison):
    check(backend, reference, case, dtype)


@pytest.mark.parametrize("residual", ["none", "same", "strided", "wider"])
@pytest.mark.parametrize("mask_by_x", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_residuals(residual, mask_by_x, dtype, composed, poison):
    case = varied(
        SPATIAL, inner=65, residual=residual, mask_by_x=mask_by_x, residual_mask=not mask_by_x
    )
    before = launch.launched["chain_join_kernel"]
    check(backend, reference, case, dtype)
    # a gradient that nothing joins and nothing masks is left as it is
    wanted = residual != "none" or mask_by_x
    assert launch.launched["chain_join_kernel"] - before == wanted


@pytest.mark.parametrize("channels", [1, 17, 64, 65])
def test_masked_input_gradient_at_every_width(channels, composed, poison, monkeypatch):
    config = {"tile": 256, "programs": 3, "num_warps": 4}
    choose = layers.config
    monkeypatch.setattr(
        layers, "config", lambda name, y: config if name == "chain_mask" else choose(name, y)
    )
    before = launch.launched["chain_mask_kernel"]
    check(backend, reference, varied(SPATIAL, inner=channels, prologue=True), torch.float32)
    assert launch.launched["chain_mask_kernel"] == before + 1


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_what_is_not_wanted_is_empty(wanted, prologue, composed, poison):
    case = varied(SPATIAL, prologue=prologue, need_dx=wanted[0], need_dw=wanted[1])
    results = check(backend, reference, case, torch.float32)
    assert results["dx"].shape == ((2, 7, 5, 6) if wanted[0] else (0,))
    assert results["dw"].shape == ((5, 7, 3, 3) if wanted[1] else (0,))
    assert results["sum_g"].shape == ((7,) if prologue else (0,))


def test_wider_weight_keeps_its_dtype_and_strides(composed):
    arguments = list(make(SPATIAL, torch.float16))
    arguments[11] = arguments[11].double().contiguous(memory_format=torch.channels_last)
    _, dw, *_ = backend.chain_backward(*arguments)
    assert dw.dtype == torch.float64
    assert dw.stride() == arguments[11].stride()
