"""Whole residual blocks on a GPU: every operator at ResNet-50's shapes, and the block Functions."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from parity.block_cases import (
    RESIDUALS,
    SHORTCUTS,
    chain_case,
    expand_backward_case,
    expand_case,
    moments_case,
    pool_case,
)
from parity.moment_cases import KINDS as MOMENT_KINDS
from parity.moment_cases import moments_and_weights
from parity.moment_cases import results as named_results
from parity.oracle import ATOL, assert_parity
from torch import Tensor, nn

from fastres import backends, models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is for CPU tensors"
    ),
]

if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    from fastres.backends import reference
    from fastres.backends import triton as backend
    from fastres.kernels import tuned

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# images, K, N, H, W of the expanding convolutions of ResNet-50's stages, and odd ones
SHAPES = [
    (4, 64, 256, 56, 56),
    (4, 128, 512, 28, 28),
    (4, 256, 1024, 14, 14),
    (4, 512, 2048, 7, 7),
    (3, 17, 65, 13, 11),
]
SMALL = SHAPES[1]
POOL = (3, 2, 1)


@pytest.fixture(autouse=True)
def exact_fp32():
    """fp32 products in fp32, so that parity in fp32 is not judged by TF32's error."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        yield


def on_device(arguments) -> list:
    return [a.to(DEVICE) if isinstance(a, Tensor) else a for a in arguments]


def results(module, name: str, arguments) -> dict[str, Tensor]:
    found = getattr(module, name)(*arguments)
    found = found if isinstance(found, tuple | list) else (found,)
    return {f"{name}[{number}]": value for number, value in enumerate(found)}


def in_fp64(arguments, dtype: torch.dtype) -> list:
    """Everything in fp64; a convolution's weight is rounded to the activations' dtype first."""
    return [
        (a.to(dtype) if a.dim() == 4 else a).double()
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in arguments
    ]


def check(name: str, arguments, dtype: torch.dtype) -> None:
    """The rule of parity for every result of an operator, and its dtype and layout."""
    arguments = on_device(arguments)
    ours = results(backend, name, arguments)
    same = results(reference, name, arguments)
    exact = results(reference, name, in_fp64(arguments, dtype))
    for key, value in ours.items():
        assert (value.shape, value.dtype) == (same[key].shape, same[key].dtype), key
        assert value.stride() == same[key].stride() or value.numel() == 0, key
    assert_parity(ours, same, exact, ATOL[dtype])


@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments(shape, dtype, bn):
    for stride in (1, 2):
        check("moments", moments_case(*shape, dtype, bn=bn, stride=stride), dtype)


@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expand(shape, dtype, kind):
    check("expand", expand_case(kind, *shape, dtype, bn=True), dtype)


@pytest.mark.parametrize("kind", ["identity", "strided projection"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expand_reduce(shape, dtype, kind):
    for next_channels in (shape[1], 2 * shape[1]):
        arguments = expand_case(kind, *shape, dtype, bn=True, next_channels=next_channels)
        check("expand_reduce", arguments, dtype)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expand_backward(shape, dtype, masked, frozen):
    for bn in (False, True):
        weight, data = expand_backward_case(*shape, dtype, bn=bn, masked=masked, frozen=frozen)
        check("expand_backward_weight", weight, dtype)
        check("expand_backward_data", data, dtype)


@pytest.mark.parametrize("kind", ["one rank", "ranks", "frozen", "no weight and bias"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_between_the_passes_of_a_moment_form(shape, dtype, kind):
    images, inner, outer, height, width = shape
    found = moments_and_weights(images * height * width, inner, outer, dtype, **MOMENT_KINDS[kind])
    for name in found.arguments:
        arguments = on_device(found.arguments[name])
        ours, again = (named_results(backend, name, arguments) for _ in range(2))
        same = named_results(reference, name, arguments)
        for key, value in ours.items():
            assert (value.shape, value.dtype) == (same[key].shape, same[key].dtype), key
            assert torch.equal(value, again[key]), key
        exact = {key: value.to(DEVICE) for key, value in found.expected[name].items()}
        assert_parity(ours, same, exact, ATOL[dtype])
        if "mixing" in ours:
            assert torch.equal(ours["mixing"], ours["mixing"].t())


@pytest.mark.parametrize("providing", ["by the tables", "triton", "cudnn"])
@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("geometry", ["1x1", "1x1 stride 2", "3x3", "3x3 stride 2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_chain_backward(dtype, geometry, prologue, providing):
    for images, narrow, wide, height, width in SHAPES:
        inner, outer = (wide, narrow) if geometry.startswith("1x1") else (narrow, narrow)
        arguments = chain_case(
            images, inner, outer, height, width, dtype, geometry=geometry, prologue=prologue
        )
        if providing == "by the tables":
            check("chain_backward", arguments, dtype)
        else:
            with tuned.provider(providing):
                check("chain_backward", arguments, dtype)


@pytest.mark.parametrize("mask_by_x", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chain_backward_joins_a_residual(dtype, residual, mask_by_x):
    for images, narrow, wide, height, width in SHAPES:
        arguments = chain_case(
            images, wide, narrow, height, width, dtype,
            geometry="1x1", residual=residual, mask_by_x=mask_by_x,
        )  # fmt: skip
        check("chain_backward", arguments, dtype)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stem(dtype, frozen):
    for shape in ((4, 64, 112, 112), (2, 17, 13, 11)):
        forward, reduce, backward = pool_case(*shape, dtype, POOL, frozen=frozen)
        check("bn_max_pool", forward, dtype)
        check("bn_max_pool_backward_reduce", reduce, dtype)
        check("bn_max_pool_backward", backward, dtype)


def every_operator(dtype: torch.dtype) -> list[tuple[str, list]]:
    """One call of each operator of whole blocks, on the device."""
    images, narrow, wide, height, width = SMALL
    weight, data = expand_backward_case(*SMALL, dtype, bn=True, masked=True)
    pool = pool_case(images, 64, height, width, dtype, POOL)
    size = (images, wide, narrow, height, width)
    calls = [
        ("moments", moments_case(*SMALL, dtype, bn=True)),
        ("expand", expand_case("projection", *SMALL, dtype, bn=True)),
        ("expand_reduce", expand_case("identity", *SMALL, dtype, bn=True, next_channels=narrow)),
        ("expand_backward_weight", weight),
        ("expand_backward_data", data),
        ("chain_backward", chain_case(*size, dtype, geometry="1x1", residual="identity")),
        ("chain_backward", chain_case(*size, dtype, geometry="3x3", prologue=True)),
        ("bn_max_pool", pool[0]),
        ("bn_max_pool_backward_reduce", pool[1]),
        ("bn_max_pool_backward", pool[2]),
    ]
    return [(name, on_device(arguments)) for name, arguments in calls]


def step(calls: list[tuple[str, list]]) -> list[Tensor]:
    with tuned.provider("triton"):
        return [v for call in calls for v in results(backend, *call).values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fifty_repeats_are_bitwise_equal(dtype):
    calls = every_operator(dtype)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        first = step(calls)
        for _ in range(50):
            assert all(map(torch.equal, first, step(calls)))


def test_operators_run_on_the_current_stream():
    calls = every_operator(torch.bfloat16)
    expected = step(calls)
    originals = [[a.clone() if isinstance(a, Tensor) else a for a in call[1]] for call in calls]
    for _, arguments in calls:
        for argument in arguments:
            if isinstance(argument, Tensor):
                argument.zero_()
    busy = torch.randn(4096, 4096, device=DEVICE)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):  # a launch on another stream would overtake this and see zeros
            busy = busy @ busy * 1e-2
        for (_, arguments), kept in zip(calls, originals, strict=True):
            for argument, original in zip(arguments, kept, strict=True):
                if isinstance(argument, Tensor):
                    argument.copy_(original)
        ours = step(calls)
    stream.synchronize()
    assert all(map(torch.equal, ours, expected))


def test_operators_are_captured_in_a_graph():
    calls, others = every_operator(torch.bfloat16), every_operator(torch.bfloat16)
    for _, arguments in others:
        arguments[0].mul_(0.5)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(calls)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(calls)
    for (_, arguments), (_, changed) in zip(calls, others, strict=True):
        arguments[0].copy_(changed[0])
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, step(others)))


def gradients(model: nn.Module, images: Tensor, dout: Tensor) -> dict[str, Tensor]:
    """Output, every gradient and the running statistics of a stage of a network."""
    leaf = images.clone().requires_grad_()
    with torch.autocast("cuda", images.dtype, enabled=images.dtype in DTYPES[1:]):
        out = model(leaf)
    out.backward(dout.to(out.dtype))
    found = {"out": out.detach(), "input": leaf.grad}
    found |= {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    return found


def twins(name: str) -> tuple[nn.Module, nn.Module]:
    """A fused stage and torchvision's, with the same weights."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).layer2
    ours = models.create(name, fused=True).layer2
    ours.load_state_dict(theirs.state_dict())
    channels_last = torch.channels_last
    return (
        ours.to(DEVICE, memory_format=channels_last).train(),
        theirs.to(DEVICE, memory_format=channels_last).train(),
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stage_matches_torchvision(name, dtype):
    """Errors against fp64 in the norm: single ReLUs may decide the other way in either."""
    ours, theirs = twins(name)
    exact = copy.deepcopy(theirs).double()
    channels = 64 if name == "resnet18" else 256
    images = torch.randn(8, channels, 56, 56, device=DEVICE).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        dout = torch.randn_like(copy.deepcopy(theirs).float()(images.float())).to(dtype)
    backends.reset_counts()
    mine = gradients(ours, images, dout)
    counted = backends.counts()
    other = gradients(theirs, images, dout)
    truth = gradients(exact, images.double(), dout.double())
    assert counted, "no fused operator ran"
    assert all(label.endswith(":triton") for label in counted), counted
    if name == "resnet50":
        assert counted["expand_backward_data:triton"] > 0, counted
    for key, value in mine.items():
        size = torch.linalg.vector_norm(truth[key])
        error = torch.linalg.vector_norm(value.double() - truth[key]) / size
        allowed = 2 * torch.linalg.vector_norm(other[key].double() - truth[key]) / size
        assert error <= allowed + ATOL[dtype], f"{key}: {error}, torch's twice {allowed}"


def test_a_whole_network_repeats_bitwise():
    """Forward and backward of the fused network in bf16, five times."""
    torch.manual_seed(0)
    model = models.create("resnet50", fused=True).to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(8, 3, 224, 224, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    first: dict[str, Tensor] = {}
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for _ in range(5):
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(images).float().square().mean()
            loss.backward()
            found = {name: p.grad.clone() for name, p in model.named_parameters()}
            for name, gradient in found.items():
                assert torch.equal(gradient, first.get(name, gradient)), name
            first = found
