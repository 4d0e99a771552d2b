"""csrc/cuda and csrc/common without a GPU: the kernels' bodies run thread by thread on the CPU
against plain PyTorch, and nvcc compiles them for every target without a warning."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fastres.extension import recipe, toolchain

ROOT = recipe.source_root()
EMULATION = Path(__file__).parent / "cuda_emulation"
SHAPES = [
    # batch, height, width, channels, out_channels, stride
    (2, 8, 8, 4, 8, 2),
    (1, 7, 5, 3, 7, 2),
    (3, 7, 7, 8, 8, 1),
    (2, 13, 8, 16, 32, 3),
    (1, 1, 1, 1, 2, 2),
    (2, 2, 1, 4, 36, 5),
]


class Index(ctypes.Structure):
    """fastres::PadShortcutIndex."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "height_in",
            "width_in",
            "channels_in",
            "height_out",
            "width_out",
            "channels_out",
            "stride",
        )
    ]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    try:
        compiler = toolchain.find_compiler()
    except toolchain.Unavailable as error:
        pytest.skip(str(error))
    built = tmp_path_factory.mktemp("emulated") / "kernels.so"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    flags += ["-ffp-contract=off", "-fPIC", "-shared", f"-I{EMULATION}", f"-I{ROOT}"]
    subprocess.run(
        [*compiler.command, *flags, str(EMULATION / "kernels.cpp"), "-o", str(built)], check=True
    )
    library = ctypes.CDLL(str(built))
    library.make_index.argtypes = [ctypes.c_int64] * 5
    library.make_index.restype = Index
    for name in ("input_offset", "output_offset"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        function.restype = ctypes.c_int64
    return library


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def activation(*size: int) -> torch.Tensor:
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


def poisoned(*size: int) -> torch.Tensor:
    nan = torch.full(size, float("nan"))
    return nan.contiguous(memory_format=torch.channels_last)


def plain_pad(x: torch.Tensor, out_channels: int, stride: int) -> torch.Tensor:
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, out_channels - x.shape[1]))


def widths(shape: tuple[int, ...]) -> list[bool]:
    return [False, True] if shape[3] % 4 == 0 and shape[4] % 4 == 0 else [False]


CASES = [(shape, wide) for shape in SHAPES for wide in widths(shape)]


@pytest.mark.parametrize("shape", SHAPES)
def test_index_header_against_brute_force(emulated, shape):
    batch, height, width, channels, out_channels, stride = shape
    index = emulated.make_index(height, width, channels, out_channels, stride)
    x = torch.arange(1, batch * height * width * channels + 1, dtype=torch.float64)
    image = x.view(batch, height, width, channels).permute(0, 3, 1, 2)
    out = plain_pad(image, out_channels, stride)
    assert (index.height_out, index.width_out) == tuple(out.shape[2:])
    flat = out.permute(0, 2, 3, 1).reshape(-1, out_channels)
    reads = {}
    for row, channel in itertools.product(*map(range, flat.shape)):
        offset = emulated.input_offset(ctypes.byref(index), row, channel)
        assert flat[row, channel] == (0 if offset < 0 else x[offset])
        if offset >= 0:
            reads[offset] = row * out_channels + channel
    for offset in range(x.numel()):
        row, channel = divmod(offset, channels)
        back = emulated.output_offset(ctypes.byref(index), row, channel)
        assert back == reads.get(offset, -1)


def test_index_header_beyond_32_bits(emulated):
    index = emulated.make_index(1 << 16, 1 << 16, 3, 8, 2)
    row = (1 << 31) + 5
    n, rest = divmod(row, 1 << 30)
    h, w = divmod(rest, 1 << 15)
    expected = ((n * (1 << 16) + 2 * h) * (1 << 16) + 2 * w) * 3 + 1
    assert emulated.input_offset(ctypes.byref(index), row, 1) == expected
    assert emulated.output_offset(ctypes.byref(index), expected // 3, 1) == row * 8 + 1


def test_index_header_on_an_empty_axis(emulated):
    index = emulated.make_index(0, 5, 3, 8, 2)
    assert (index.height_out, index.width_out) == (0, 3)


@pytest.mark.parametrize(("shape", "wide"), CASES)
def test_pad_shortcut_kernels(emulated, shape, wide):
    batch, height, width, channels, out_channels, stride = shape
    index = emulated.make_index(height, width, channels, out_channels, stride)
    x = activation(batch, channels, height, width).requires_grad_()
    expected = plain_pad(x, out_channels, stride)
    dout = activation(*expected.shape)
    (expected_dx,) = torch.autograd.grad(expected, x, dout)
    out, dx = poisoned(*expected.shape), poisoned(*x.shape)
    reference = ctypes.byref(index)
    emulated.pad_shortcut(pointer(x), pointer(out), reference, ctypes.c_int64(batch), wide)
    emulated.pad_shortcut_backward(
        pointer(dout), pointer(dx), reference, ctypes.c_int64(batch), wide
    )
    assert torch.equal(out, expected)
    assert torch.equal(dx, expected_dx)


@pytest.mark.parametrize(("shape", "wide"), CASES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_join_kernels(emulated, shape, wide, relu, affine, frozen):
    batch, height, width, channels, out_channels, stride = shape
    index = emulated.make_index(height, width, channels, out_channels, stride)
    shortcut = activation(batch, channels, height, width).requires_grad_()
    y = activation(batch, out_channels, index.height_out, index.width_out).requires_grad_()
    mean, invstd = torch.randn(out_channels), torch.rand(out_channels) + 0.5
    weight = torch.randn(out_channels) if affine else None
    bias = torch.randn(out_channels) if affine else None

    def column(values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None]

    xhat = (y.detach() - column(mean)) * column(invstd)
    scale = invstd * weight if affine else invstd
    total = (y - column(mean)) * column(scale) + plain_pad(shortcut, out_channels, stride)
    total = total + column(bias) if affine else total
    expected = total.relu() if relu else total

    out = poisoned(*y.shape)
    emulated.bn_apply_pad(
        pointer(y), pointer(mean), pointer(invstd), pointer(weight), pointer(bias),
        pointer(shortcut), pointer(out), ctypes.byref(index), ctypes.c_int64(batch), relu, wide,
    )  # fmt: skip
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)

    dout = activation(*y.shape)
    # the frozen gradient of y and the shortcut's gradient are autograd's; training takes off means
    expected_dy, expected_dshortcut = torch.autograd.grad(expected, (y, shortcut), dout)
    mean_g = mean_gx = None
    if not frozen:
        mean_g, mean_gx = torch.randn(out_channels), torch.randn(out_channels)
        expected_dy = expected_dy - column(scale) * (column(mean_g) + xhat * column(mean_gx))
    dy, dshortcut = poisoned(*y.shape), poisoned(*shortcut.shape)
    emulated.bn_backward_pad(
        pointer(dout), pointer(out if relu else None), pointer(y), pointer(mean), pointer(invstd),
        pointer(weight), pointer(mean_g), pointer(mean_gx), pointer(dy), pointer(dshortcut),
        ctypes.byref(index), ctypes.c_int64(batch), wide,
    )  # fmt: skip
    torch.testing.assert_close(dy, expected_dy, rtol=1e-5, atol=1e-5)
    assert torch.equal(dshortcut, expected_dshortcut)


def test_nan_and_infinity_pass_the_join(emulated):
    index = emulated.make_index(1, 1, 1, 4, 1)
    y = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]).view(1, 4, 1, 1)
    shortcut = torch.zeros(1, 1, 1, 1)
    ones, zeros, out = torch.ones(4), torch.zeros(4), poisoned(1, 4, 1, 1)
    emulated.bn_apply_pad(
        pointer(y), pointer(zeros), pointer(ones), pointer(None), pointer(None),
        pointer(shortcut), pointer(out), ctypes.byref(index), ctypes.c_int64(1), True, False,
    )  # fmt: skip
    torch.testing.assert_close(out, y.relu(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_for_every_target_without_a_warning(monkeypatch, tmp_path):
    targets = [f"{arch[:-1]}.{arch[-1]}" for arch in toolchain.DEFAULT_CUDA_ARCHITECTURES]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", " ".join(targets))
    try:
        cuda = recipe.cuda_recipe()
    except toolchain.Unavailable as error:
        pytest.skip(str(error))
    strict = {
        "nvcc": [
            "-Werror=all-warnings",
            "-Xcompiler=-Wall,-Wextra,-Werror",
            "-Xptxas=-warn-spills,-warn-lmem-usage",
        ],
        "cxx": ["-Werror"],
    }
    assert {source.suffix for source in cuda.sources} == {".cu", ".cpp"}
    for source in cuda.sources:
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        done = subprocess.run(
            [*cuda.commands[rule], *strict[rule], str(source), "-o", str(tmp_path / "object.o")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
