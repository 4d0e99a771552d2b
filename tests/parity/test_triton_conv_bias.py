"""Inference's convolution in the interpreter, epilogue and all, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from parity.oracle import ATOL, assert_parity

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

from fastres.backends import triton as backend  # noqa: E402
from fastres.backends import triton_inference  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402

KERNEL = "conv_bias_act_kernel"
# the interpreter's bf16 product is not a product: bf16 is tested on a GPU
DTYPES = (torch.float32, torch.float16)
# images, C in, C out, H, kernel, stride, padding, dilation
SHAPES = [
    (2, 1, 3, 5, 1, 1, 0, 1),
    (1, 17, 65, 7, 1, 1, 0, 1),
    (2, 65, 63, 8, 1, 2, 0, 1),
    (1, 3, 17, 7, 1, 3, 0, 2),
    (2, 4, 6, 4, 1, 1, 1, 1),
    (1, 3, 64, 13, 7, 2, 3, 1),
    (2, 17, 3, 8, 3, 1, 1, 1),
    (1, 65, 17, 7, 3, 2, 1, 1),
    (3, 1, 5, 13, 3, 3, 2, 2),
    (1, 5, 7, 6, 2, 1, 0, 1),
]
# bias, shortcut, ReLU
ENDS = [(True, True, True), (True, False, True), (True, False, False), (False, True, False)]
SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}


def make(shape, dtype, with_bias=True, with_shortcut=True):
    """x, weight, bias and shortcut of a convolution."""
    images, inner, outer, extent, kernel, *geometry = shape
    random = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(images, inner, extent, extent + 1, generator=random).to(dtype)
    weight = torch.randn(outer, inner, kernel, kernel, generator=random)
    weight = (weight / (inner * kernel * kernel) ** 0.5).to(dtype)
    bias = torch.randn(outer, generator=random).to(dtype)
    size = F.conv2d(x.float(), weight.float(), None, *geometry).shape
    shortcut = torch.randn(size, generator=random).to(dtype)
    return x, weight, bias if with_bias else None, shortcut if with_shortcut else None


def in_torch(x, weight, bias, shortcut, geometry, relu, dtype) -> torch.Tensor:
    x, weight, bias, shortcut = (
        None if t is None else t.to(dtype) for t in (x, weight, bias, shortcut)
    )
    out = F.conv2d(x, weight, bias, *geometry)
    out = out if shortcut is None else out + shortcut
    return out.relu() if relu else out


def ours(tensors, geometry, relu=True):
    stride, padding, dilation = geometry
    return backend.conv_bias_act(
        *tensors, [stride] * 2, [padding] * 2, [dilation] * 2, 1, relu
    )  # fmt: skip


def check(shape, dtype, end=ENDS[0]):
    *given, relu = end
    tensors, geometry = make(shape, dtype, *given), shape[5:]
    out = ours(tensors, geometry, relu)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    torchs, exact = (in_torch(*tensors, geometry, relu, to) for to in (dtype, torch.float64))
    assert_parity({"out": out}, {"out": torchs}, {"out": exact}, ATOL[dtype])


@pytest.mark.parametrize("end", ENDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(shape, dtype, end, poison):
    before = launch.launched[KERNEL]
    with tuned.provider("triton"):
        check(shape, dtype, end)
    assert launch.launched[KERNEL] == before + 1


@pytest.mark.parametrize("shape", [(2, 40, 37, 5, 1, 1, 0, 1), (1, 20, 37, 6, 3, 1, 1, 1)], ids=str)
def test_many_tiles_in_every_direction(shape, poison, monkeypatch):
    choice = tuned.Choice("triton", SMALL)
    monkeypatch.setattr(tuned, "choose", lambda *args, **kwargs: choice)
    check(shape, torch.float32)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("images", [0, 1])
def test_whole_numbers_are_exact(kernel, images, poison):
    random = torch.Generator().manual_seed(0)
    draw = [(images, 5, 6, 6), (7, 5, kernel, kernel), (7,), (images, 7, 6, 6)]
    tensors = [torch.randint(-4, 5, size, generator=random).float() for size in draw]
    with tuned.provider("triton"):
        out = ours(tensors, (1, kernel // 2, 1))
    assert torch.equal(out, in_torch(*tensors, (1, kernel // 2), True, torch.float64).float())


@pytest.mark.parametrize("kernel", [1, 3])
def test_nan_passes_the_relu_and_reaches_what_saw_it(kernel):
    x, weight, bias = torch.randn(1, 3, 6, 6), torch.randn(2, 3, kernel, kernel), torch.zeros(2)
    shortcut = torch.zeros(1, 2, 6, 6)
    x[0, 1, 2, 3] = shortcut[0, 0, 5, 5] = torch.nan
    tensors, geometry = (x, weight, bias, shortcut), (1, kernel // 2, 1)
    with tuned.provider("triton"):
        out = ours(tensors, geometry)
    expected = in_torch(*tensors, geometry, True, torch.float32)
    assert expected.isnan().any()
    assert torch.equal(out.isnan(), expected.isnan())


def test_layouts_do_not_matter_and_repeats_are_equal():
    tensors, geometry = make((2, 5, 4, 6, 3, 1, 1, 1), torch.float32), (1, 1, 1)
    wide = torch.zeros(2, 4, 6, 14)
    wide[..., ::2] = tensors[3]
    other = [t.to(memory_format=torch.channels_last) for t in tensors[:2]]
    with tuned.provider("triton"):
        first = ours(tensors, geometry)
        assert torch.equal(ours(tensors, geometry), first)
        assert torch.equal(ours([*other, tensors[2], wide[..., ::2]], geometry), first)


def test_a_weight_of_another_dtype_is_rounded():
    x, weight, bias, shortcut = make((1, 4, 6, 5, 3, 1, 1, 1), torch.float32)
    half = [x.half(), weight, bias, shortcut.half()]
    rounded = [t.half() for t in (x, weight)]
    with tuned.provider("triton"):
        out = ours(half, (1, 1, 1))
        assert torch.equal(out, ours([*rounded, bias, shortcut.half()], (1, 1, 1)))
    assert out.dtype == torch.float16


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("dtype", "groups"), [(torch.float64, 1), (torch.bfloat16, 1), (torch.float32, 2)]
)
def test_torchs_convolution_serves_the_rest(dtype, groups, relu):
    x, weight = torch.randn(2, 4, 5, 5).to(dtype), torch.randn(6, 4 // groups, 3, 3).to(dtype)
    bias, shortcut = torch.randn(6).to(dtype), torch.randn(2, 6, 3, 3).to(dtype)
    before = launch.launched[KERNEL]
    with tuned.provider("triton"):
        out = backend.conv_bias_act(x, weight, bias, shortcut, [2, 2], [1, 1], [1, 1], groups, relu)
    assert launch.launched[KERNEL] == before
    expected = F.conv2d(x, weight, bias, 2, 1, 1, groups) + shortcut
    torch.testing.assert_close(out, expected.relu() if relu else expected)


def chosen(dtype, relu, kernel, outer=256, family="sm_90", images=1):
    x = torch.empty(images, 64, 14, 14, dtype=dtype, device="meta")
    weight = torch.empty(outer, 64, kernel, kernel, dtype=dtype, device="meta")
    geometry = ([1, 1], [kernel // 2] * 2, [1, 1], 1)
    with launch.recording(), tuned.choosing_for(None, family):
        return triton_inference.chosen(x, weight, *geometry, relu)


@pytest.mark.parametrize("family", tuned.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_shipped_tables_choose(dtype, family):
    # with a ReLU cuDNN fuses as much; without one a 1x1's bias would be a pass of its own
    for kernel in (1, 3, 7):
        assert chosen(dtype, True, kernel, family=family) is None
    assert chosen(dtype, False, 3, family=family) is None
    narrow, wide = (chosen(dtype, False, 1, outer, family) for outer in (64, 2048))
    assert (narrow.config["BLOCK_N"], wide.config["BLOCK_N"]) == (64, 128)


def test_fp32_is_multiplied_as_torch_is_told(monkeypatch):
    name = "fastres.backends.triton_inference.uses_tf32"
    monkeypatch.setattr(name, lambda: True)
    assert chosen(torch.float32, False, 1).tf32
    monkeypatch.setattr(name, lambda: False)
    assert chosen(torch.float32, False, 1) is None  # cuDNN's exact products
    with tuned.provider("triton"):
        assert not chosen(torch.float32, False, 1).tf32


def test_the_number_of_rows_is_part_of_the_choice():
    seen = []
    with tuned.watching(lambda key, choice: (seen.append(key), choice)[1]):
        for images in (1, 2, 3, 4):
            chosen(torch.float16, True, 1, images=images)
    assert [dict(key.shape)["rows"] for key in seen] == [256, 512, 1024, 1024]
    assert dict(seen[0].shape) == {"rows": 256, "taps": 1, "inner": 64, "outer": 256}
