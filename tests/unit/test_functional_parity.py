"""The fused operators against torch's modules in double precision: outputs, every gradient and the
running statistics, on both CPU backends."""

from __future__ import annotations

import pytest
from helpers.residual import KINDS, Case, check, nan_memory
from hypothesis import given, settings
from hypothesis import strategies as st

BACKENDS = ("reference", "native")
# kind, frozen, s_frozen
STATES = [(kind, frozen, frozen) for kind in KINDS for frozen in (False, True)]
STATES += [("bn", False, True), ("bn", True, False)]


@pytest.mark.parametrize(("kind", "frozen", "s_frozen"), STATES)
@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("reference", "fp64"),
        ("reference", "fp32"),
        ("reference", "bf16"),
        ("reference", "bf16 autocast"),
        ("reference", "fp16"),
        ("native", "fp32"),
        ("native", "bf16"),
        ("native", "bf16 autocast"),
    ],
)
def test_every_kind_dtype_and_state(backend, mode, kind, frozen, s_frozen):
    case = Case(kind, n=3, frozen=frozen, s_frozen=s_frozen, s_stride=2, spare=1)
    check(case, mode, backend)
    check(Case(kind, relu=False, frozen=frozen, s_frozen=s_frozen), mode, backend, seed=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3, 17, 63, 64, 65])
@pytest.mark.parametrize("kind", KINDS)
def test_every_width(kind, channels, backend):
    narrow = max(1, channels // 2)
    check(Case(kind, c_in=3, c_out=channels, s_channels=narrow, h=5), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 7), (7, 13), (13, 8), (8, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_extent(kind, size, backend):
    check(Case(kind, n=3, h=size[0], w=size[1], s_stride=3, spare=1), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2},
        {"stride": 3},
        {"dilation": 2},
        {"stride": 2, "dilation": 2},
        {"kernel": 1},
        {"kernel": 1, "stride": 2},
        {"kernel": 7, "stride": 2, "c_in": 3},
        {"groups": 4},
        {"groups": 8, "stride": 2},
    ],
    ids=str,
)
def test_every_geometry(geometry, n, backend):
    check(Case("identity", n=n, h=13, w=8, **geometry), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("s_channels", [16, 15, 8, 1])
@pytest.mark.parametrize("s_stride", [1, 2, 3])
@pytest.mark.parametrize("spare", [0, 1])
def test_padded_shortcut(s_stride, s_channels, spare, backend):
    case = Case("pad", s_channels=s_channels, s_stride=s_stride, spare=spare, n=3, h=5, w=3)
    check(case, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_affine_parameters(kind, backend):
    check(Case(kind, affine=False), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_what_memory_held(kind, backend):
    with nan_memory():
        check(Case(kind, n=3, s_stride=2, spare=1), backend=backend)
        check(Case(kind, stride=3, s_stride=3, spare=2), "bf16", backend)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_many_blocks(kind, mode):
    """More values than one block of partial sums holds, and a last block that is not full."""
    check(Case(kind, n=3, c_in=4, c_out=24, h=41, w=37, kernel=1, s_stride=2, spare=1), mode)


@st.composite
def cases(draw) -> Case:
    kind = draw(st.sampled_from(KINDS))
    groups = draw(st.sampled_from([1, 1, 2]))
    c_out = groups * draw(st.integers(1, 40))
    size = {"h": draw(st.integers(1, 13)), "w": draw(st.integers(1, 13))}
    case = Case(
        kind,
        n=draw(st.integers(1, 3)),
        c_in=groups * draw(st.integers(1, 9)),
        c_out=c_out,
        **size,
        kernel=draw(st.sampled_from([1, 3])),
        stride=draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        relu=draw(st.booleans()),
        frozen=draw(st.booleans()),
        s_frozen=draw(st.booleans()),
        affine=draw(st.booleans()),
        s_channels=draw(st.integers(1, c_out)),
        s_stride=draw(st.integers(1, 3)),
        spare=draw(st.integers(0, 2)),
    )
    n, _, h, w = case.output()
    # one or two values a channel: the variance is nothing or all, torch's own error is its size
    if n * h * w < 4:
        case = Case(**{**case.__dict__, "frozen": True, "s_frozen": True})
    return case


@pytest.mark.parametrize(("backend", "mode"), [("reference", "fp32"), ("native", "fp32"),
                                               ("native", "bf16")])  # fmt: skip
@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_the_space_between(backend, mode, case, seed):
    check(case, mode, backend, seed)
