"""Networks of other libraries, small and large, for the tests of `fuse`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres import backends

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


def small(library: str = "torchvision", *, classes: int = 10, **options) -> nn.Module:
    """A bottleneck network of five narrow, grouped blocks, made after seed 0."""
    torch.manual_seed(0)
    if library == "torchvision":
        block, layers = torchvision.models.resnet.Bottleneck, [1, 2, 1, 1]
        return torchvision.models.ResNet(
            block, layers, num_classes=classes, groups=2, width_per_group=16, **options
        )
    block = timm.models.resnet.Bottleneck
    return timm.models.ResNet(
        block, [1, 2, 1, 1], num_classes=classes, cardinality=2, base_width=16, **options
    )


def double(library: str = "torchvision", **options) -> tuple[nn.Module, nn.Module]:
    """An unfused and a fused network in fp64."""
    return twins(lambda: small(library, **options).double())


LIBRARIES = ("torchvision", "timm")


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The network as it is, and a copy of it that is fused."""
    plain = make()
    return plain, fastres.fuse(copy.deepcopy(plain))


def images(n: int = 4, size: int = 64, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Random images [n, 3, size, size]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=random, dtype=torch.float64).to(dtype)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


# what one step may differ by in fp64: the two only sum in another order
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@contextmanager
def fused_path(operators: tuple[str, ...] = ("chain_backward", "expand_backward_weight")):
    """Fails if none of these operators ran inside; the default ones are backward passes."""
    backends.reset_counts()
    yield
    launched = {key.partition(":")[0] for key, times in backends.counts().items() if times}
    assert launched & set(operators), f"the fused path did not run, only {launched}"


FORWARD = ("conv_stats", "moments")


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Output and gradients of one step; the loss weighs every entry of the output differently."""
    model.zero_grad()
    out = model(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight + out.square()).mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance) -> None:
    """Two dictionaries of tensors (or None), entry by entry."""
    assert list(found) == list(expected)
    for key, want in expected.items():
        if want is None:
            assert found[key] is None, key
        else:
            torch.testing.assert_close(
                found[key], want, **(tolerance or CLOSE), msg=lambda m, k=key: f"{k}: {m}"
            )


def assert_same_step(plain: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """One forward and backward of both: outputs, gradients and buffers are the same, in fp64."""
    expected, wanted = gradients(plain, x)
    with fused_path():
        result, found = gradients(fused, x)
    torch.testing.assert_close(result, expected, **CLOSE)
    assert_close(found, wanted)
    assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))
