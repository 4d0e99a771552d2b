"""The C++ operators between a moment form's passes against fp64 and the reference, for any size,
layout, dtype of a parameter and number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.moment_cases import (
    KINDS,
    NAMES,
    RESULTS,
    SIZES,
    assert_same,
    case,
    check,
    check_a_large_mean,
    check_nan,
    check_rounding_of_the_weight,
    check_the_mixing,
    moments_and_weights,
    results,
    strided,
)
from parity.oracle import ATOL

from fastres import extension
from fastres.backends import native, reference

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)
DTYPES = (torch.float32, torch.bfloat16)
# the places of gamma
WEIGHTS = {"moment_statistics": 5, "moment_gradients": 4, "moment_batch_gradients": 6}


@pytest.fixture(autouse=True)
def _loaded():
    assert extension.load()


def check_all(found, dtype):
    for name in found.arguments:
        check(native, found, name, dtype)


def test_they_are_operators_of_the_extension():
    for name in NAMES:
        assert getattr(native, name) is getattr(torch.ops.fastres_native, name).default


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, (40, 33, 31), (600, 300, 513)], ids=str)
def test_parity(size, dtype, kind):
    check_all(case(size, dtype, kind), dtype)


@given(
    rows=st.integers(0, 300), k=st.integers(1, 80), width=st.integers(1, 150),
    kind=st.sampled_from(list(KINDS)), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=100)
def test_any_size(rows, k, width, kind, dtype, seed):
    rows = 0 if kind.startswith("no rows") else rows
    check_all(moments_and_weights(rows, k, width, dtype, seed=seed, **KINDS[kind]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_and_sums_are_of_fp32(dtype):
    """Also beside bf16, of whose matrices they are: products are not of bf16 pairs."""
    found = case((300, 128, 256), dtype)
    for name in NAMES:
        ours = results(native, name, found.arguments[name])
        for key in set(RESULTS[name]) - {"gain", "mixing", "constant"}:
            expected = found.expected[name][key]
            error = (ours[key].double() - expected).abs().max()
            assert error <= ATOL[torch.float32] * max(1, expected.abs().max()), (name, key)


def test_a_large_mean_does_not_cancel():
    check_a_large_mean(native)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mixing_is_symmetric_and_the_constant_made_of_what_was_rounded(dtype):
    check_the_mixing(native, dtype)
    for size in SIZES:
        mixing = native.moment_batch_gradients(
            *case(size, dtype).arguments["moment_batch_gradients"]
        )[0]
        assert torch.equal(mixing, mixing.t())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["one rank", "ranks", "frozen"])
def test_repeats_layouts_and_threads_do_not_matter(kind, dtype):
    for size in ((40, 17, 65), (300, 128, 256)):
        for name, arguments in case(size, dtype, kind).arguments.items():
            first = results(native, name, arguments)
            last = list(arguments)
            last[1] = arguments[1].contiguous(memory_format=torch.channels_last)
            for changed in (arguments, strided(arguments), last):
                assert_same(results(native, name, changed), first)
            torch.set_num_threads(2)
            try:
                assert_same(results(native, name, arguments), first)
            finally:
                torch.set_num_threads(1)


def test_a_weight_is_rounded_to_the_activations_dtype():
    check_rounding_of_the_weight(native, torch.bfloat16)


def test_a_bf16_weight_beside_fp32_activations():
    for name, arguments in case((40, 17, 65), torch.float32).arguments.items():
        wide, narrow = list(arguments), list(arguments)
        narrow[1] = arguments[1].bfloat16()
        wide[1] = narrow[1].float()
        assert_same(results(native, name, narrow), results(native, name, wide))


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.float16])
def test_weight_and_bias_of_any_dtype_and_one_without_the_other(dtype):
    def other(value):
        return None if dtype is None else value.to(dtype)

    for name, arguments in case((40, 17, 65), torch.float32).arguments.items():
        weight = WEIGHTS[name]
        for place in (weight, weight + 1) if name == "moment_statistics" else (weight,):
            changed = list(arguments)
            changed[place] = other(arguments[place])
            ours, same = results(native, name, changed), results(reference, name, changed)
            for key, value in ours.items():
                torch.testing.assert_close(value, same[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_a_count_of_any_dtype(dtype):
    """0 counts as 1."""
    arguments = case((40, 17, 65), torch.float32, "ranks").arguments["moment_batch_gradients"]
    for count in (0, 1, 3136000):
        arguments[12] = torch.tensor(count, dtype=dtype)
        ours = results(native, "moment_batch_gradients", arguments)
        same = results(reference, "moment_batch_gradients", arguments)
        for key, value in ours.items():
            torch.testing.assert_close(value, same[key], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_share_no_memory(dtype):
    for kind in ("ranks", "no weight and bias", "frozen"):
        for name, arguments in case((40, 17, 65), dtype, kind).arguments.items():
            given = [value for value in arguments if isinstance(value, torch.Tensor)]
            before = [value.clone() for value in given]
            made = getattr(native, name)(*arguments)
            places = [value.untyped_storage().data_ptr() for value in (*made, *given[1:])]
            assert len(set(places)) == len(places), (name, kind)
            assert all(torch.equal(*pair) for pair in zip(before, given, strict=True))


def test_nan_reaches_what_it_reaches_in_torch():
    check_nan(native)
