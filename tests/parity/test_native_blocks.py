"""The C++ operators of whole blocks against the reference: |native - fp64| <= 2 |reference in the
same dtype - fp64| + a small term, for any size, layout, shortcut and number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.block_cases import (
    PADDINGS,
    RESIDUALS,
    SHORTCUTS,
    chain_case,
    expand_backward_case,
    expand_case,
    moments_case,
    pool_case,
)
from parity.oracle import ATOL, assert_parity

from fastres import extension
from fastres.backends import native, reference

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)
DTYPES = (torch.float32, torch.bfloat16)
# rows of a few pixels up to more than one panel, channels below, at and above a vector's lanes
SIZES = [
    (2, 1, 3, 1, 1),
    (1, 3, 5, 3, 7),
    (3, 17, 40, 5, 7),
    (2, 64, 96, 13, 8),
    (5, 65, 130, 9, 7),
]


@pytest.fixture(autouse=True)
def _loaded():
    assert extension.load()


def run(backend, name, arguments, dtype=None):
    """The named outputs of an operator; `dtype` fp64 widens every floating argument."""

    def cast(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if dtype is not None and floating else value

    result = getattr(backend, name)(*(cast(value) for value in arguments))
    result = result if isinstance(result, tuple) else (result,)
    return {f"{name}[{i}]": value for i, value in enumerate(result)}


def check(name, arguments, dtype):
    ours = run(native, name, arguments)
    same = run(reference, name, arguments)
    exact = run(reference, name, arguments, torch.float64)
    for key, value in ours.items():
        assert (value.shape, value.dtype) == (same[key].shape, same[key].dtype), key
        if value.dim() == 4 and name != "chain_backward":
            assert value.is_contiguous(memory_format=torch.channels_last), key
    assert_parity(ours, same, exact, ATOL[dtype])


def assert_same(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_moments(size, dtype, bn, stride):
    check("moments", moments_case(*size, dtype, bn=bn, stride=stride), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [300, 512, 1024])
def test_moments_in_blocks(inner, dtype, two_threads):
    """Of so many channels that the product is taken in one, two and more blocks of columns."""
    check("moments", moments_case(2, inner, 1, 20, 15, dtype, bn=True), dtype)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHORTCUTS)
def test_expand(kind, dtype, bn, relu):
    for size in SIZES:
        check("expand", expand_case(kind, *size, dtype, bn=bn, relu=relu), dtype)
        reduce = expand_case(kind, *size, dtype, bn=bn, relu=relu, next_channels=19)
        check("expand_reduce", reduce, dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_expand_backward(size, dtype, bn, masked):
    for stride in (1, 2) if not bn else (1,):
        for frozen in (False, True):
            weight, data = expand_backward_case(
                *size, dtype, bn=bn, masked=masked, frozen=frozen, stride=stride
            )
            check("expand_backward_weight", weight, dtype)
            check("expand_backward_data", data, dtype)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_chain_backward(padding, dtype, prologue, frozen):
    for size in SIZES:
        for mask in ("out", "relu", "none"):
            arguments = chain_case(
                *size, dtype, geometry=padding, prologue=prologue, frozen=frozen, mask=mask
            )
            check("chain_backward", arguments, dtype)


@pytest.mark.parametrize("mask_by_x", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_chain_backward_with_a_residual(padding, dtype, residual, mask_by_x):
    for size in SIZES:
        arguments = chain_case(
            *size, dtype, geometry=padding, residual=residual, mask_by_x=mask_by_x
        )
        check("chain_backward", arguments, dtype)


@pytest.mark.parametrize(("need_dx", "need_dw"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
def test_chain_backward_of_what_is_asked_for(padding, prologue, need_dx, need_dw):
    arguments = chain_case(
        3, 17, 40, 5, 7, torch.float32, geometry=padding, prologue=prologue, residual="identity"
    )
    arguments[-2:] = [need_dx, need_dw]
    check("chain_backward", arguments, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (1, 1, 0)])
@pytest.mark.parametrize("channels", [1, 17, 64])
def test_bn_max_pool(channels, window, dtype):
    for frozen in (False, True):
        forward, reduce, backward = pool_case(3, channels, 9, 8, dtype, window, frozen=frozen)
        out, index = native.bn_max_pool(*forward)
        want, place = reference.bn_max_pool(*forward)
        assert torch.equal(out, want)
        assert torch.equal(index, place)
        check("bn_max_pool_backward_reduce", reduce, dtype)
        check("bn_max_pool_backward", backward, dtype)


def every_operator(dtype, n=3, k=24, width=48, height=9, columns=11):
    """A call of each operator, by name."""
    size = (n, k, width, height, columns)
    weight, data = expand_backward_case(*size, dtype, bn=True, masked=True)
    forward, reduce, backward = pool_case(n, k, height, columns, dtype, (3, 2, 1))
    yield "moments", moments_case(*size, dtype, bn=True)
    for kind in SHORTCUTS:
        yield "expand", expand_case(kind, *size, dtype, bn=True)
        yield "expand_reduce", expand_case(kind, *size, dtype, bn=True, next_channels=19)
    yield "expand_backward_weight", weight
    yield "expand_backward_data", data
    for geometry in PADDINGS:
        yield "chain_backward", chain_case(*size, dtype, geometry=geometry, prologue=True)
        yield (
            "chain_backward",
            chain_case(*size, dtype, geometry=geometry, residual="identity", mask_by_x=True),
        )
    yield "bn_max_pool", forward
    yield "bn_max_pool_backward_reduce", reduce
    yield "bn_max_pool_backward", backward


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch(dtype):
    for name, arguments in every_operator(dtype, n=0):
        ours, want = run(native, name, arguments), run(reference, name, arguments)
        for key, value in want.items():
            assert ours[key].shape == value.shape, key
            assert torch.equal(ours[key], torch.zeros_like(value)), key


LAYOUTS = {
    "NCHW": lambda t: t.contiguous(),
    "sliced": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "offset": lambda t: torch.cat([t[:1], t])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_gives_the_same_bits(dtype, layout):
    for name, arguments in every_operator(dtype):
        changed = [
            LAYOUTS[layout](value)
            if isinstance(value, torch.Tensor) and value.dim() == 4
            else value
            for value in arguments
        ]
        assert_same(run(native, name, changed), run(native, name, arguments))


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_and_thread_counts_change_no_bit(dtype, two_threads):
    for name, arguments in every_operator(dtype, n=5, height=29, columns=31):
        threads_matter = name == "chain_backward"  # oneDNN's own sums
        first = run(native, name, arguments)
        for _ in range(5):
            assert_same(run(native, name, arguments), first)
        torch.set_num_threads(1)
        if not threads_matter:
            assert_same(run(native, name, arguments), first)
        torch.set_num_threads(2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_comes_through(dtype):
    """A NaN of y, dout or the shortcut is a NaN of out and of the gradients it enters."""
    for kind in SHORTCUTS:
        arguments = expand_case(kind, 2, 17, 40, 3, 5, dtype, bn=True)
        arguments[0][1, 3, 2, 2] = torch.nan
        out = native.expand(*arguments)
        assert out[1, :, 2, 2].isnan().all()
        assert out.isnan().sum() == 40
        if arguments[9] is not None and kind != "pad":
            arguments[0][1, 3, 2, 2] = 0
            arguments[9][0, 5, 0, 0] = torch.nan
            out = native.expand(*arguments)
            assert out[0, 5, 0, 0].isnan()
    weight, data = expand_backward_case(2, 17, 40, 3, 5, dtype, bn=True, masked=True)
    for case in (weight, data):
        case[0][1, 7, 1, 1] = torch.nan
        case[1][1, 7, 1, 1] = 1
    product, sum_g = native.expand_backward_weight(*weight)
    assert product[:, 7].isnan().all()
    assert product.isnan().sum() == 17
    assert sum_g.isnan().sum() == 1
    dz, *_ = native.expand_backward_data(*data)
    assert dz[1, :, 1, 1].isnan().any()
    assert not dz[0].isnan().any()
    masked = weight[1].clone()
    masked[1, 7, 1, 1] = torch.nan  # a NaN lets the gradient pass, as torch's threshold does
    weight[0][1, 7, 1, 1] = 3.0
    weight[1] = masked
    product, sum_g = native.expand_backward_weight(*weight)
    want, want_g = reference.expand_backward_weight(*weight)
    torch.testing.assert_close(product, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sum_g, want_g, rtol=1e-4, atol=1e-4)


@st.composite
def any_call(draw):
    dtype = draw(st.sampled_from(DTYPES))
    size = (
        draw(st.integers(0, 3)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 70)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
    )
    seed, bn, flag = draw(st.integers(0, 99)), draw(st.booleans()), draw(st.booleans())
    name = draw(st.sampled_from(["moments", "expand", "weight", "data", "chain"]))
    if name == "moments":
        return dtype, name, moments_case(*size, dtype, bn=bn, stride=1 + flag, seed=seed)
    if name == "expand":
        kind = draw(st.sampled_from(SHORTCUTS))
        return dtype, name, expand_case(kind, *size, dtype, bn=bn, relu=flag, seed=seed)
    if name == "chain":
        arguments = chain_case(
            *size,
            dtype,
            geometry=draw(st.sampled_from(list(PADDINGS))),
            prologue=bn,
            mask=draw(st.sampled_from(["out", "relu", "none"])),
            residual=None if bn else draw(st.sampled_from([None, *RESIDUALS])),
            mask_by_x=flag and not bn,
            frozen=draw(st.booleans()),
            seed=seed,
        )
        return dtype, "chain_backward", arguments
    weight, data = expand_backward_case(*size, dtype, bn=bn, masked=flag, seed=seed)
    return dtype, f"expand_backward_{name}", weight if name == "weight" else data


@given(call=any_call())
@settings(max_examples=200)
def test_any_call(call):
    dtype, name, arguments = call
    check(name, arguments, dtype)
