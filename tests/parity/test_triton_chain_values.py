"""Links with unusual values, layouts and sizes, on every path that the backward can take."""

from __future__ import annotations

import os

import pytest
import torch
from parity.chain_cases import NAMES, Case, make, varied

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

import fastres  # noqa: E402
from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import tuned  # noqa: E402

PROVIDERS = ("triton", "cudnn")
LINKS = [
    Case(residual="same", mask_by_x=True),
    Case(kernel=3, padding=1, prologue=True),
    Case(kernel=3, padding=1, residual="strided", stride=2),
]
DOUT, X, RESIDUAL = 0, 10, 20


@pytest.fixture(params=PROVIDERS, autouse=True)
def _provider(request):
    with tuned.provider(request.param):
        yield


@pytest.mark.parametrize("case", LINKS, ids=str)
def test_repeats_are_bitwise_equal(case):
    arguments = make(case, torch.float32)
    first, again = (backend.chain_backward(*arguments) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("case", LINKS, ids=str)
def test_empty_batch(case):
    arguments = make(varied(case, images=0), torch.float32)
    results = backend.chain_backward(*arguments)
    expected = reference.chain_backward(*arguments)
    for name, mine, theirs in zip(NAMES, results, expected, strict=True):
        assert mine.shape == theirs.shape, name
        assert torch.equal(mine, torch.zeros_like(mine)), name


@pytest.mark.parametrize("case", LINKS, ids=str)
@pytest.mark.parametrize("where", [DOUT, 2, X])
def test_nan_reaches_what_it_would_in_torch(case, where):
    arguments = list(make(varied(case, images=1), torch.float32))
    arguments[where][0, 1, 2, 2] = torch.nan
    results = backend.chain_backward(*arguments)
    expected = reference.chain_backward(*arguments)
    for name, mine, theirs in zip(NAMES, results, expected, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan()), name


@pytest.mark.parametrize("case", LINKS, ids=str)
def test_layouts_do_not_matter(case):
    arguments = make(case, torch.float32)
    expected = backend.chain_backward(*arguments)
    moved = list(arguments)
    for place in (DOUT, 2, X, RESIDUAL):
        if moved[place] is not None:
            moved[place] = moved[place].contiguous().clone(memory_format=torch.contiguous_format)
    assert all(map(torch.equal, backend.chain_backward(*moved), expected))


@pytest.mark.parametrize("case", LINKS, ids=str)
def test_an_expanded_gradient_is_read_as_it_is(case):
    arguments = list(make(case, torch.float32))
    arguments[DOUT] = torch.ones(()).expand(arguments[DOUT].shape)
    results = backend.chain_backward(*arguments)
    for mine, theirs in zip(results, reference.chain_backward(*arguments), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", LINKS, ids=str)
def test_small_integers_are_exact(case):
    # every product and sum is a whole number that fp32 holds; means and scales are 0 and 1
    arguments = [
        value.mul(2).round() if isinstance(value, torch.Tensor) and value.dim() == 4 else value
        for value in make(case, torch.float32)
    ]
    zeros, ones = torch.zeros(case.outer), torch.ones(case.outer)
    arguments[3:9] = [zeros, ones, ones, zeros, ones, ones]
    if case.prologue:
        arguments[16:20] = [torch.zeros(7), torch.ones(7), torch.ones(7), torch.zeros(7)]
    results = backend.chain_backward(*arguments)
    for name, mine, theirs in zip(
        NAMES, results, reference.chain_backward(*arguments), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_opcheck():
    arguments = make(LINKS[1], torch.float32)
    with fastres.backend("triton"):
        torch.library.opcheck(torch.ops.fastres.chain_backward.default, arguments)
