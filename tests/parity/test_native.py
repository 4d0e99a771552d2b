"""The C++ kernels against the reference, operator by operator, and against themselves: the same
bits from every layout, thread count and repetition, and nothing written outside an output."""

from __future__ import annotations

import ctypes

import pytest
import torch
from helpers.residual import draw, nan_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.oracle import KINDS, launch_join, make_join

from fastres import extension
from fastres.backends import native, reference
from fastres.backends.ops import SCHEMAS

pytestmark = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason="the C++ extension cannot be built here"
)

# of the largest value: two ways of summing some thousand values in fp32, one rounding to bf16
CLOSE = {torch.float32: 4e-6, torch.bfloat16: 8e-3}
DTYPES = tuple(CLOSE)


@pytest.fixture(autouse=True)
def _loaded():
    assert extension.load()


def assert_close(ours, expected, dtype):
    assert ours.keys() == expected.keys()
    for name, want in expected.items():
        got = ours[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        if want.numel():
            scale = max(1.0, want.double().abs().max().item())
            error = (got.double() - want.double()).abs().max().item()
            assert error <= CLOSE[dtype] * scale, f"{name}: {error}"


def assert_same(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_every_operator_is_there():
    for name in SCHEMAS:
        operator = getattr(native, name)
        assert callable(operator)
        if operator is getattr(reference, name):  # no kernel of ours, and no other of that name
            assert not hasattr(torch.ops.fastres_native, name)
            continue
        theirs = str(getattr(torch.ops.fastres, name).default._schema)
        ours = str(getattr(native, name)._schema)
        # a size may be symbolic while it is traced; C++ is given numbers
        assert ours.partition("::")[2] == theirs.partition("::")[2].replace("SymInt", "int")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = native.nonsense


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_joins_equal_the_reference(kind, dtype, relu, frozen):
    for channels in (1, 3, 17, 64, 65, 300):
        join = make_join(kind, dtype, channels, relu=relu, frozen=frozen, images=3)
        assert_close(launch_join(join, native), launch_join(join, reference), dtype)


@st.composite
def joins(draw):
    channels = draw(st.integers(1, 80))
    return make_join(
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(DTYPES)),
        channels,
        images=draw(st.integers(0, 4)),
        size=(draw(st.integers(1, 14)), draw(st.integers(1, 14))),
        relu=draw(st.booleans()),
        frozen=draw(st.booleans()),
        stride=draw(st.integers(1, 3)),
        s_channels=draw(st.integers(1, channels)),
        seed=draw(st.integers(0, 99)),
    )


@given(join=joins())
@settings(max_examples=150)
def test_joins_of_any_size_equal_the_reference(join):
    with nan_memory():
        ours, expected = launch_join(join, native), launch_join(join, reference)
    if join.y.numel() == join.y.shape[1] and not join.frozen:
        return  # the variance of one value is 0: its gradient is a difference of equal numbers
    assert_close(ours, expected, join.y.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "pixels"), [(1, 3), (40, 200), (7, 4681), (1, 32768), (1, 32769)])
@pytest.mark.parametrize("channels", [1, 7, 24])
def test_statistics_of_many_blocks(channels, n, pixels, dtype):
    y = torch.randn(n, channels, pixels, 1).mul(2).add(5).to(dtype)
    mean, var = native.bn_stats(y)
    exact = y.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=5e-7, atol=1e-7)
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3), correction=0), rtol=2e-6, atol=0)


def test_statistics_of_a_large_mean():
    y = torch.randn(4, 6, 50, 60).add(1e4)
    y[:, 1] -= 2e4
    y[0, 2, 0] = -1e4  # the rows that the sums are shifted by lie far from the rest
    y[:, 3] = 0.1
    y[:, 4] *= 1e12
    y[:, 5] *= 1e-30
    mean, var = native.bn_stats(y)
    exact = y.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=3e-7, atol=0)
    want = exact.var((0, 2, 3), correction=0)
    want[3] = 0
    torch.testing.assert_close(var.double()[:5], want[:5], rtol=1e-4, atol=0)
    assert 0 <= var[5] < 1e-37


LAYOUTS = {
    "NCHW": lambda t: t.contiguous(),
    "sliced": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "strided": lambda t: torch.stack([t, t], -1).flatten(3)[..., ::2],
    "permuted": lambda t: t.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1),
    "offset": lambda t: torch.cat([t[:1], t])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_gives_the_same_bits(kind, dtype, layout):
    join = make_join(kind, dtype, 6, images=3)
    dense = launch_join(join, native)
    for name in ("y", "dout", "shortcut"):
        value = getattr(join, name)
        if value is not None:
            setattr(join, name, LAYOUTS[layout](value))
            assert torch.equal(getattr(join, name), value)
    assert_same(launch_join(join, native), dense)
    for name in ("out", "dy", "dshortcut"):
        if name in dense:
            assert dense[name].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolutions_and_pools_of_any_layout(layout):
    generator = torch.Generator().manual_seed(0)
    x = draw(3, 6, 9, 8, generator=generator).float()
    weight = draw(4, 6, 3, 3, generator=generator).float()
    x = x.contiguous(memory_format=torch.channels_last)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    nothing = (None,) * 4

    def run(change):
        y, mean, var = native.conv_stats(change(x), weight, *geometry, *nothing, True)
        dy = torch.ones_like(y).cumsum(3)
        dx, dw = native.conv_backward(change(dy), change(x), weight, *geometry, True, True)
        out, index = native.max_pool(change(x), [3, 3], [2, 2], [1, 1])
        pooled = native.max_pool_backward(
            change(out), change(index), list(x.shape), [3, 3], [2, 2], [1, 1]
        )
        padded = native.pad_shortcut(change(x), 8, 2)
        back = native.pad_shortcut_backward(change(padded), list(x.shape), 2)
        values = (y, mean, var, dx, dw, out, index, pooled, padded, back)
        return dict(enumerate(values))

    assert_same(run(lambda t: t), run(LAYOUTS[layout]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_expanded_gradient(kind):
    join = make_join(kind, torch.float32, 6, images=3)
    join.dout = torch.ones(()).expand(join.y.shape)
    expanded = launch_join(join, native)
    join.dout = torch.ones(join.y.shape)
    assert_same(expanded, launch_join(join, native))


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_repeats_are_bitwise_equal(kind):
    join = make_join(kind, torch.float32, 24, images=3, size=(29, 31))
    first = launch_join(join, native)
    for _ in range(49):
        assert_same(launch_join(join, native), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(kind, dtype, two_threads):
    join = make_join(kind, dtype, 24, images=5, size=(29, 31))
    both = launch_join(join, native)
    torch.set_num_threads(1)
    assert_same(launch_join(join, native), both)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_of_the_gradient_is_the_mask_of_the_output(kind):
    """Values at and around zero: where out is 0 the gradient is 0, and nowhere else."""
    for dtype in DTYPES:
        join = make_join(kind, dtype, 19, images=4, size=(11, 13), frozen=True)
        join.dout = torch.ones_like(join.dout)
        join.y.copy_(join.running[0].view(1, -1, 1, 1) + 1e-3 * join.y)
        join.y[:, ::3] = 0.25
        join.bias.zero_()
        join.running[0][::3] = 0.25
        if kind == "identity":
            join.shortcut *= 1e-3
        results = launch_join(join, native)
        assert torch.equal(results["dy"] == 0, results["out"] == 0)
        assert (results["out"] == 0).any()
        assert (results["out"] != 0).any()


def test_margins_stay_untouched():
    """Three neighbours in the pool: the middle one is freed and taken by an output."""
    # enough of them to fill all lower places
    pixels = torch.zeros(2, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    copies = [native.pad_shortcut(pixels, 64, 1) for _ in range(60)]
    copies.sort(key=torch.Tensor.data_ptr)
    lower, middle, upper = copies[-3:]
    place, nbytes = middle.data_ptr(), middle.nbytes
    gaps = [
        (start, end - start)
        for start, end in (
            (lower.data_ptr() + nbytes, place),
            (place + nbytes, upper.data_ptr()),
        )
    ]
    assert all(0 <= length <= 1 << 14 for _, length in gaps)
    for start, length in gaps:
        ctypes.memset(start, 0x5A, length)
    lower.fill_(torch.nan)
    upper.fill_(torch.nan)
    zero, one = torch.zeros(64), torch.ones(64)
    del middle, copies[-2]
    y = torch.randn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    narrow = y[:, :63].contiguous(memory_format=torch.channels_last)
    index = torch.zeros_like(y, dtype=torch.uint8)
    size, none = list(y.shape), (None,) * 5
    affine = (zero, one, None, None)
    runs = [
        lambda: native.bn_apply(y, *affine, *none, 1, True),
        lambda: native.bn_apply(y, *affine, y[:, :7], *none[1:], 1, True),
        lambda: native.bn_backward(y, None, y, *affine, zero, zero, *none, [], 1, True)[0],
        lambda: native.pad_shortcut(narrow, 64, 1),
        lambda: native.pad_shortcut_backward(y, size, 1),
        lambda: native.max_pool_backward(y, index, size, [1, 1], [1, 1], [0, 0]),
    ]
    for run in runs:
        out = run()
        assert out.data_ptr() == place
        assert lower.isnan().all()
        assert upper.isnan().all()
        for start, length in gaps:
            assert ctypes.string_at(start, length) == b"\x5a" * length
        assert not out.isnan().any()
        del out
