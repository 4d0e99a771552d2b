"""The Triton kernels of the join in the interpreter, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.oracle import ATOL, KINDS, assert_parity, launch_join, make_join, run_join

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.backends import triton_layers as layers  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 3, 17, 63, 64, 65)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def check(join, dtype):
    ours = launch_join(join, backend)
    assert_parity(ours, run_join(join, dtype), run_join(join, torch.float64), ATOL[dtype])
    for name in ("out", "dy", "dshortcut"):
        if name in ours:
            assert ours[name].dtype == dtype
            assert ours[name].is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_join_matches_fp64_at_every_width(kind, channels, poison):
    check(make_join(kind, torch.float32, channels), torch.float32)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_join_matches_fp64_in_every_dtype(kind, dtype, relu, frozen, poison):
    check(make_join(kind, dtype, 17, relu=relu, frozen=frozen, images=3, size=(3, 5)), dtype)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (8, 13), (13, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_join_matches_fp64_at_every_extent(kind, size, poison):
    check(make_join(kind, torch.float32, 5, size=size, images=3, stride=3), torch.float32)


@pytest.mark.parametrize("s_channels", [16, 15, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padded_shortcut_of_every_width_and_stride(stride, s_channels, poison):
    join = make_join("pad", torch.float32, 16, stride=stride, s_channels=s_channels)
    check(join, torch.float32)


@pytest.mark.parametrize("spare", [0, 1])
def test_padded_gradient_reaches_pixels_after_the_last_taken_one(spare, poison):
    join = make_join("pad", torch.float32, 6, size=(3, 4), stride=2)
    join.shortcut = torch.randn(2, 3, 5 + spare, 7 + spare)
    check(join, torch.float32)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(1, 70),
    images=st.integers(1, 3),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.integers(1, 3),
    relu=st.booleans(),
    frozen=st.booleans(),
)
def test_join_matches_fp64_in_between(kind, channels, images, size, stride, relu, frozen):
    if images * size[0] * size[1] == 1:  # one value per channel has no variance
        size = (size[0] + 1, size[1])
    join = make_join(
        kind, torch.float32, channels, images=images, size=size, stride=stride, relu=relu,
        frozen=frozen,
    )  # fmt: skip
    check(join, torch.float32)


def test_many_row_tiles_share_a_program(monkeypatch, poison):
    # a few programs, so that each loops, and the last of them over a shorter tile
    config = {"tile": 512, "programs": 3, "num_warps": 4}
    choose = layers.config
    monkeypatch.setattr(
        layers, "config", lambda name, y: config if name != "pad_shortcut" else choose(name, y)
    )
    for kind in KINDS:
        check(make_join(kind, torch.float32, 17, images=3, size=(5, 7)), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind):
    join = make_join(kind, torch.float32, 4, images=0)
    ours, expected = launch_join(join, backend), launch_join(join, reference)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def test_statistics_survive_a_large_mean(poison):
    y = torch.randn(3, 5, 17, 13, dtype=torch.float64) + 1e4
    y[:, 1] = torch.randn(3, 17, 13) * 1e-2 + 100
    y[0, 2, 0, 0] = 0.0  # far from the mean, and the first value a program sees
    y = y.float()
    mean, var = backend.bn_stats(y)
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=2e-7, atol=0)


def test_statistics_of_more_partials_than_a_merge_holds(poison):
    from fastres.kernels.partials import merge_statistics

    count = torch.randint(0, 3, (1500,)).float()
    mean = torch.randn(1500, 5) + 1e4
    m2 = torch.rand(1500, 5) * count[:, None]
    merged_mean, var = merge_statistics(count, mean, m2)
    total, c = count.double().sum(), count.double()[:, None]
    exact = (c * mean.double()).sum(0) / total
    exact_var = (m2.double() + c * (mean.double() - exact) ** 2).sum(0) / total
    torch.testing.assert_close(merged_mean.double(), exact, rtol=2e-7, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, inside the interpreter
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_pass_as_in_torch(dtype):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e-42, 1.0, -1.0])
    y = special.to(dtype).repeat(3).view(1, 3, 2, 4).contiguous(memory_format=torch.channels_last)
    mean, invstd = torch.zeros(3), torch.ones(3)
    shortcut = torch.zeros_like(y)
    nothing = (None,) * 4
    for relu in (False, True):
        ours = backend.bn_apply(y, mean, invstd, None, None, shortcut, *nothing, 1, relu)
        expected = torch.relu(y + shortcut) if relu else y + shortcut
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
        out = ours if relu else None
        dout = torch.ones_like(y)
        _, g = backend.bn_backward(
            dout, out, y, mean, invstd, None, None, None, None, None, None, None, None, None,
            list(y.shape), 1, relu,
        )  # fmt: skip
        leaf = (y + shortcut).requires_grad_()
        (leaf.relu() if relu else leaf * 1).backward(dout)
        torch.testing.assert_close(g, leaf.grad, rtol=0, atol=0)
    mean, var = backend.bn_stats(y)
    assert mean.isnan().all()
    assert var.isnan().all()


def test_a_nan_stays_in_its_channel():
    y = torch.randn(2, 5, 3, 3)
    y[1, 2, 0, 1] = torch.nan
    mean, var = backend.bn_stats(y)
    assert mean.isnan().tolist() == var.isnan().tolist() == [False, False, True, False, False]


def test_integers_are_exact(poison):
    y = torch.randint(-4, 5, (2, 6, 4, 4)).float()
    shortcut = torch.randint(-4, 5, (2, 6, 4, 4)).float()
    ours = backend.bn_apply(
        y, torch.ones(6), torch.full((6,), 2.0), None, torch.ones(6), shortcut,
        None, None, None, None, 1, True,
    )  # fmt: skip
    assert torch.equal(ours, ((y - 1) * 2 + 1 + shortcut).relu())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 1)])
def test_max_pool_equals_torchs(window, dtype):
    kernel, stride, padding = window
    x = torch.randint(-3, 4, (2, 5, 7, 8)).to(dtype)  # with ties
    x[0, 0, 2, 3], x[1, 1] = torch.nan, -torch.inf
    geometry = ([kernel] * 2, [stride] * 2, [padding] * 2)
    out, index = backend.max_pool(x, *geometry)
    expected, expected_index = reference.max_pool(x, *geometry)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, expected_index)
    dout = torch.randint(-3, 4, out.shape).to(dtype)
    dx = backend.max_pool_backward(dout, index, list(x.shape), *geometry)
    leaf = x.clone().requires_grad_()
    torch.nn.functional.max_pool2d(leaf, kernel, stride, padding).backward(dout)
    assert torch.equal(dx, leaf.grad)
    for value in (out, index, dx):
        assert value.is_contiguous(memory_format=torch.channels_last)
    empty, _ = backend.max_pool(x[:0], *geometry)
    assert empty.shape == (0, *out.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_are_bitwise_equal(kind):
    join = make_join(kind, torch.float32, 33, size=(6, 5))
    first = launch_join(join, backend)
    for _ in range(3):
        again = launch_join(join, backend)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("layout", ["nchw", "sliced", "permuted", "expanded"])
def test_any_strides_give_the_dense_result(layout):
    join = make_join("identity", torch.float32, 6, size=(4, 4))
    if layout == "expanded":
        join.dout = torch.ones(1).expand(join.y.shape)

    def change(value):
        if layout == "nchw":
            return value.contiguous()
        if layout == "sliced":
            wide = torch.zeros(*value.shape[:3], 2 * value.shape[3])
            wide[..., ::2] = value
            return wide[..., ::2]
        if layout == "permuted":
            return value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        return value

    expected = launch_join(join, backend)
    join.y, join.shortcut = change(join.y), change(join.shortcut)
    if layout != "expanded":
        join.dout = change(join.dout)
    ours = launch_join(join, backend)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
        if value.dim() == 4:
            assert ours[name].is_contiguous(memory_format=torch.channels_last)


def test_expanded_and_strided_vectors():
    y = torch.randn(2, 5, 3, 3)
    mean, invstd = torch.randn(10)[::2], torch.ones(1).expand(5)
    ours = backend.bn_apply(y, mean, invstd, None, mean, None, None, None, None, None, 1, False)
    torch.testing.assert_close(ours, y)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("channels", [4, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pad_shortcut_moves_bits(stride, channels, dtype, poison):
    x = torch.randn(2, 4, 7, 8).to(dtype)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = torch.nan, -0.0
    out = backend.pad_shortcut(x, channels, stride)
    expected = reference.pad_shortcut(x, channels, stride)
    # equal_nan does not see a sign: -0.0 is compared by its reciprocal
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out[0, 1].reciprocal(), expected[0, 1].reciprocal())
    dout = torch.randn_like(out)
    dx = backend.pad_shortcut_backward(dout, list(x.shape), stride)
    assert torch.equal(dx, reference.pad_shortcut_backward(dout, list(x.shape), stride))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
