"""32 steps of training beside the same network in plain PyTorch, from the same weights.

What is exact is the run in double precision. Rounding grows in training, so a fixed tolerance
would say little: our run may stray from the exact one as far as PyTorch's run in the same dtype
does, with a factor for the luck of the draw (one ReLU that decides otherwise is seen in the fourth
digit). PyTorch runs in channels_last, as we do: oneDNN's convolutions there have about twice the
rounding error of those in NCHW.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

import fastres
from fastres import backends
from fastres.layers import Bottleneck

STEPS = 32
# Ours may stray this many times as far as PyTorch: after 32 steps the few ReLUs that decided
# otherwise are most of either distance (1.0 to 1.4 was seen). One forward is held to 2.
FACTOR = 3.0


def train(
    model: nn.Module,
    size: int,
    rate: float,
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """Losses, parameters and buffers after 32 steps of SGD with momentum on random images."""
    model = model.to(dtype, memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(7)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(STEPS):
        labels = torch.randint(10, (8,), generator=generator)
        images = torch.randn(8, 3, size, size, generator=generator)
        images[:, 0] += labels.view(-1, 1, 1) / 5  # something to learn
        images = images.to(dtype, memory_format=torch.channels_last)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach().double())
    state = {name: value.double() for name, value in model.state_dict().items()}
    return {"losses": torch.stack(losses), **state}


def distance(run: dict[str, torch.Tensor], exact: dict[str, torch.Tensor], part: str) -> float:
    """Root of the summed squares over all tensors of `part`, relative to the exact ones'."""
    chosen = {
        "losses": lambda name: name == "losses",
        "running": lambda name: "running" in name,
        "parameters": lambda name: name != "losses" and "running" not in name,
    }[part]
    names = [name for name in exact if chosen(name) and "tracked" not in name]
    wrong = sum((run[name] - exact[name]).square().sum().item() for name in names)
    return (wrong / sum(exact[name].square().sum().item() for name in names)) ** 0.5


def compare(
    make: Callable[[bool], nn.Module], size: int, rate: float
) -> dict[tuple[str, str], tuple]:
    """(dtype, part) -> how far ours, and PyTorch's, strayed."""
    torch.manual_seed(0)
    plain, fused = make(False), make(True)
    fused.load_state_dict(plain.state_dict())
    exact = train(copy.deepcopy(plain), size, rate, torch.float64)
    found = {}
    for name, autocast in (("fp32", None), ("bf16", torch.bfloat16)):
        theirs = train(copy.deepcopy(plain), size, rate, torch.float32, autocast)
        backends.reset_counts()
        ours = train(copy.deepcopy(fused), size, rate, torch.float32, autocast)
        launches = Counter(backends.counts())
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
        # every convolution's statistics: from its output, or from the moments of its input
        taken = ("conv_stats:native", "moments:native", "expand_reduce:native")
        assert sum(launches[name] for name in taken) == STEPS * norms
        bottlenecks = any(isinstance(m, Bottleneck) for m in fused.modules())
        assert (launches["moments:native"] > 0) == bottlenecks
        assert {key.partition(":")[2] for key in launches} == {"native"}
        assert all(value == STEPS for key, value in ours.items() if "tracked" in key)
        for part in ("losses", "parameters", "running"):
            found[name, part] = distance(ours, exact, part), distance(theirs, exact, part)
    return found


def resnet18(fused: bool) -> nn.Module:
    if fused:
        return fastres.resnet18(num_classes=10, fused=True)
    return torchvision.models.resnet18(num_classes=10)


def resnet20(fused: bool) -> nn.Module:
    return fastres.resnet20(fused=fused)


def bottlenecks(fused: bool) -> nn.Module:
    """ResNet-50's first blocks of every stage; torchvision's have the same order of parameters."""
    options = {"fused": True, "memory": "low"} if fused else {}
    module = fastres.models if fused else torchvision.models.resnet
    return module.ResNet(
        (Bottleneck if fused else module.Bottleneck), [2, 1, 1, 1], num_classes=10,
        width_per_group=16, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size", "rate"), [(resnet18, 64, 1e-4), (bottlenecks, 64, 1e-4), (resnet20, 32, 2e-3)]
)
def test_thirty_two_steps(make, size, rate):
    for (dtype, part), (ours, theirs) in compare(make, size, rate).items():
        assert 0 < theirs < {"fp32": 1e-2, "bf16": 0.5}[dtype], (dtype, part, theirs)
        assert ours <= FACTOR * theirs + 1e-7, (dtype, part, ours, theirs)


@pytest.mark.parametrize(("make", "size"), [(resnet18, 64), (bottlenecks, 64), (resnet20, 32)])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_forward_keeps_the_rule(make, size, seed):
    """Scores and running statistics through a whole network, before any ReLU's luck is fed back."""
    torch.manual_seed(seed)
    plain, fused = make(False), make(True)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(8, 3, size, size)
    found = []
    for model, dtype in (
        (copy.deepcopy(plain), torch.float64),
        (plain, torch.float32),
        (fused, torch.float32),
    ):
        model = model.to(dtype, memory_format=torch.channels_last)
        scores = model(x.to(dtype, memory_format=torch.channels_last)).detach().double()
        found.append({"losses": scores} | {k: b.double() for k, b in model.named_buffers()})
    exact, theirs, ours = found
    for part in ("losses", "running"):
        assert distance(ours, exact, part) <= 2 * distance(theirs, exact, part) + 1e-7


def test_the_fused_network_learns_what_the_plain_one_learns():
    """Eight steps on one batch: the loss falls in both, by the same amount."""
    torch.manual_seed(0)
    plain, fused = resnet20(False), resnet20(True)
    fused.load_state_dict(plain.state_dict())
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    curves = []
    for model in (plain, fused):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        curves.append([])
        for _ in range(8):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curves[-1].append(loss.item())
    assert curves[1][-1] < 0.9 * curves[1][0]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-3, atol=1e-3)
