"""The Triton kernels of a bottleneck's end in moment form, in the interpreter, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
from parity.block_cases import SHORTCUTS, expand_backward_case, expand_case, moments_case
from parity.oracle import ATOL, assert_parity

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402

# the interpreter's bf16 product is not a product: bf16 is tested on a GPU
DTYPES = (torch.float32, torch.float16)
# images, inner and outer channels, height, width: below, at and above the tiles, even and odd
SIZES = [(2, 1, 3, 1, 1), (3, 17, 65, 5, 7), (1, 64, 128, 4, 8), (2, 65, 130, 9, 7)]
# tiles so small that every loop and every grid has several steps, with tails
SMALL = {
    "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_R": 32, "programs": 5, "num_warps": 4,
    "num_stages": 2, "whole_rows": 0,
}  # fmt: skip
KNOBS = {
    "moments": ("BLOCK_M", "BLOCK_K", "programs"),
    "expand": ("BLOCK_M", "BLOCK_N", "BLOCK_K", "whole_rows"),
    "expand_reduce": ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_R"),
    "expand_backward_weight": ("BLOCK_M", "BLOCK_N", "BLOCK_K", "programs"),
    "expand_backward_data": ("BLOCK_M", "BLOCK_N", "BLOCK_K"),
}


@pytest.fixture
def small(monkeypatch):
    """Every choice is the small config, changed by what is given."""

    def use(**changed):
        def choose(operator, *args, **shape):
            names = (*KNOBS[operator], "num_warps", "num_stages")
            return tuned.Choice("triton", {name: (SMALL | changed)[name] for name in names})

        monkeypatch.setattr(tuned, "choose", choose)

    return use


def run(module, name, arguments, dtype=None):
    """The named results of an operator; `dtype` is that of every floating argument, None as is."""

    def cast(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if dtype is not None and floating else value

    result = getattr(module, name)(*(cast(value) for value in arguments))
    result = result if isinstance(result, tuple) else (result,)
    return {f"{name}[{index}]": value for index, value in enumerate(result)}


def ran(name):
    """How often an operator's kernel was launched."""
    kernels = ("expand_kernel", "expand_rows_kernel") if name == "expand" else (f"{name}_kernel",)
    return sum(launch.launched[kernel] for kernel in kernels)


def check(name, arguments, dtype):
    """Parity of one operator, which its kernel must have computed."""
    before = ran(name)
    ours = run(backend, name, arguments)
    assert ran(name) == before + 1
    same = run(reference, name, arguments)
    for key, value in ours.items():
        assert (value.shape, value.dtype) == (same[key].shape, same[key].dtype), key
        if value.dim() == 4:
            assert value.is_contiguous(memory_format=torch.channels_last), key
    assert_parity(ours, same, run(reference, name, arguments, torch.float64), ATOL[dtype])


@pytest.mark.parametrize(("bn", "stride"), [(True, 1), (False, 1), (False, 2), (True, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_moments(size, dtype, bn, stride, poison):
    check("moments", moments_case(*size, dtype, bn=bn, stride=stride), dtype)


@pytest.mark.parametrize(("bn", "relu"), [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHORTCUTS)
def test_expand(kind, dtype, bn, relu, poison):
    for size in SIZES:
        check("expand", expand_case(kind, *size, dtype, bn=bn, relu=relu), dtype)


@pytest.mark.parametrize(("bn", "relu"), [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SHORTCUTS)
def test_expand_reduce(kind, dtype, bn, relu, poison):
    for size in SIZES[:3]:
        arguments = expand_case(kind, *size, dtype, bn=bn, relu=relu, next_channels=19)
        check("expand_reduce", arguments, dtype)


@pytest.mark.parametrize(
    ("bn", "masked", "frozen", "stride"),
    [
        (True, True, False, 1),
        (True, False, True, 1),
        (False, True, False, 2),
        (False, False, True, 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_expand_backward(size, dtype, bn, masked, frozen, stride, poison):
    weight, data = expand_backward_case(
        *size, dtype, bn=bn, masked=masked, frozen=frozen, stride=stride
    )
    check("expand_backward_weight", weight, dtype)
    check("expand_backward_data", data, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles_in_every_direction(dtype, small, poison):
    small()
    size = (1, 40, 56, 5, 7)
    check("moments", moments_case(*size, dtype, bn=True), dtype)
    for kind in ("identity", "strided projection"):
        check("expand", expand_case(kind, *size, dtype, bn=True), dtype)
    for bn, stride in ((True, 1), (False, 2)):
        weight, data = expand_backward_case(*size, dtype, bn=bn, masked=True, stride=stride)
        check("expand_backward_weight", weight, dtype)
        check("expand_backward_data", data, dtype)
    small(BLOCK_K=64)
    for kind in ("identity", "strided projection"):
        arguments = expand_case(kind, *size, dtype, bn=True, next_channels=19)
        check("expand_reduce", arguments, dtype)


@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_programs_that_have_whole_rows(dtype, kind, small, poison):
    small(BLOCK_K=32, whole_rows=1)
    before = launch.launched["expand_rows_kernel"]
    for inner in (17, 40):  # on the chip, and too many for it
        check("expand", expand_case(kind, 1, inner, 40, 4, 5, dtype, bn=True), dtype)
    assert launch.launched["expand_rows_kernel"] == before + 1


@pytest.mark.parametrize("kind", ["none", "identity", "affine", "projection"])
def test_an_epilogue_in_parts(kind, small, poison):
    # wider than a part of an epilogue, to be halved once and twice
    small(BLOCK_N=256)
    size = (1, 20, 200, 3, 5)
    check("expand", expand_case(kind, *size, torch.float32, bn=True), torch.float32)
    _, data = expand_backward_case(1, 150, 20, 3, 5, torch.float32, bn=True, masked=True)
    check("expand_backward_data", data, torch.float32)


def test_moments_of_a_large_mean():
    torch.manual_seed(0)
    y = torch.randn(4, 8, 12, 12) * 0.01 + 100
    s, gram = backend.moments(y, *[None] * 4, torch.full((8,), 100.0), [1, 1])
    d = (y.double() - 100).permute(0, 2, 3, 1).reshape(-1, 8)
    torch.testing.assert_close(s.double(), d.sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram.double(), d.t() @ d, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_second_moments_are_symmetric(dtype, small):
    small()
    _, gram = backend.moments(*moments_case(2, 40, 0, 5, 6, dtype, bn=True))
    assert torch.equal(gram, gram.t())


def test_forward_and_backward_make_one_decision():
    # bn(y) is tiny and of either sign: whatever the forward let through, the backward does as well
    torch.manual_seed(0)
    y = (torch.randn(1, 16, 8, 8) * 1e-7 + 0.3).to(memory_format=torch.channels_last)
    norm = [torch.full((16,), 0.3), torch.rand(16) + 0.5, torch.randn(16), torch.zeros(16)]
    identity = torch.eye(16)
    z = backend.expand(
        y, *norm, None, identity[:, :, None, None], torch.ones(16), torch.zeros(16),
        *[None] * 5, [1, 1], False,
    )  # fmt: skip
    dz, _, _ = backend.expand_backward_data(
        torch.ones_like(y), None, y, *norm, None, identity, None, None, [1, 1]
    )
    assert 0 < (z > 0).sum() < z.numel()
    assert torch.equal(dz > 0, z > 0)


def every_call(dtype=torch.float32):
    size = (2, 17, 40, 5, 7)
    weight, data = expand_backward_case(*size, dtype, bn=True, masked=True)
    yield "moments", moments_case(*size, dtype, bn=True)
    yield "expand", expand_case("projection", *size, dtype, bn=True)
    yield "expand_reduce", expand_case("identity", *size, dtype, bn=True, next_channels=19)
    yield "expand_backward_weight", weight
    yield "expand_backward_data", data


def test_repeats_are_bitwise_equal():
    for name, arguments in every_call():
        first, again = (run(backend, name, arguments) for _ in range(2))
        assert all(torch.equal(first[key], again[key]) for key in first), name


def test_layouts_do_not_matter():
    for name, arguments in every_call():
        expected = run(backend, name, arguments)
        strided = [
            value.contiguous() if isinstance(value, torch.Tensor) and value.dim() == 4 else value
            for value in arguments
        ]
        for index, value in enumerate(strided):
            if isinstance(value, torch.Tensor) and value.dim() == 1:
                strided[index] = torch.stack([value, value], 1)[:, 0]
            elif isinstance(value, torch.Tensor) and value.dim() == 2:
                strided[index] = value.t().contiguous().t()
        ours = run(backend, name, strided)
        assert all(torch.equal(ours[key], expected[key]) for key in ours), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_serves_the_rest(dtype):
    for name, arguments in every_call(torch.float32 if dtype == torch.float64 else dtype):
        if dtype == torch.float64:
            arguments = [
                a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                for a in arguments
            ]
        before = ran(name)
        ours, expected = run(backend, name, arguments), run(reference, name, arguments)
        assert ran(name) == before
        for key, value in ours.items():
            torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_without_weight_and_bias(dtype, poison):
    for name, arguments in every_call(dtype):
        first = 3 if name.startswith("expand_backward") else 1
        y = arguments[first - 1]
        # away from where the ReLU's decision would depend on rounding
        arguments[first - 1] = torch.where(y.abs() < 0.1, 1.0, y).to(dtype)
        arguments[first : first + 4] = [torch.zeros(17), torch.full((17,), 0.5), None, None]
        check(name, arguments, dtype)


def test_a_next_convolution_that_does_not_fit_is_one_of_its_own():
    arguments = expand_case("identity", 1, 8, 40, 3, 3, torch.float32, bn=True, next_channels=300)
    before = ran("expand_reduce"), ran("expand")
    ours = run(backend, "expand_reduce", arguments)
    assert (ran("expand_reduce"), ran("expand")) == (before[0], before[1] + 1)
    expected = run(reference, "expand_reduce", arguments)
    for key, value in ours.items():
        torch.testing.assert_close(value, expected[key])


def test_empty_batch():
    for name, arguments in every_call():
        empty = [
            a[:0] if isinstance(a, torch.Tensor) and a.dim() == 4 and a.shape[0] == 2 else a
            for a in arguments
        ]
        ours, expected = run(backend, name, empty), run(reference, name, empty)
        for key, value in ours.items():
            assert value.shape == expected[key].shape, key
            assert not value.any(), key  # no rows: zeros


@pytest.mark.parametrize("bn", [False, True])
def test_nan_reaches_what_it_reaches_in_torch(bn):
    size = (1, 6, 10, 4, 5)
    calls = [
        ("moments", moments_case(*size, torch.float32, bn=bn), 0),
        ("expand", expand_case("identity", *size, torch.float32, bn=bn), 0),
        ("expand_reduce", expand_case("none", *size, torch.float32, bn=bn, next_channels=4), 0),
    ]
    weight, data = expand_backward_case(*size, torch.float32, bn=bn, masked=True)
    for where in (0, 1, 2):  # in dout, out and y
        calls += [("expand_backward_weight", weight, where), ("expand_backward_data", data, where)]
    for name, arguments, where in calls:
        arguments = list(arguments)
        arguments[where] = arguments[where].clone()
        arguments[where][0, 2, 1, 3] = torch.nan
        ours, expected = run(backend, name, arguments), run(reference, name, arguments)
        for key, value in ours.items():
            assert torch.equal(value.isnan(), expected[key].isnan()), (key, where)


# the product that is then dropped does meet it
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinity_does_not_meet_the_padding_of_a_tile():
    y = torch.ones(1, 4, 2, 2)
    y[0, 1, 0, 0] = torch.inf
    weight = torch.ones(5, 4, 1, 1)
    out, reduced, _, _ = backend.expand_reduce(
        y, *[None] * 4, None, weight, torch.ones(5), torch.zeros(5), *[None] * 5, [1, 1], True,
        torch.ones(3, 5, 1, 1),
    )  # fmt: skip
    assert not out.isnan().any()
    assert torch.equal(reduced.isinf().sum((2, 3)), torch.ones(1, 3, dtype=torch.long))
    assert not reduced.isnan().any()


def test_a_weight_is_rounded_to_the_activations_dtype():
    y, weight = torch.randn(1, 8, 3, 3).half(), torch.randn(16, 8, 1, 1)
    rest = (torch.ones(16), torch.zeros(16), *[None] * 5, [1, 1], False)
    wide = backend.expand(y, *[None] * 4, None, weight, *rest)
    assert torch.equal(wide, backend.expand(y, *[None] * 4, None, weight.half(), *rest))
