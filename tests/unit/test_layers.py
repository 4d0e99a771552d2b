"""Blocks and shortcuts, and when they may run fused: replaced and hooked modules must be called."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fastres import backends
from fastres.layers import BasicBlock, Bottleneck, PadShortcut, PlainBlock, make_shortcut, max_pool
from fastres.models import ResNet

FP64 = {"rtol": 1e-8, "atol": 1e-10}


def make_block(kind: str, fused: bool, norm_layer: Callable = nn.BatchNorm2d) -> nn.Module:
    """A strided block of `kind`: "plain", or "basic" or "bottleneck" and a shortcut option."""
    torch.manual_seed(1)
    name, _, option = kind.partition(" ")
    if name == "plain":
        block = PlainBlock(8, 16, 2, norm_layer=norm_layer, fused=fused)
    elif option == "identity":
        cls, planes = {"basic": (BasicBlock, 8), "bottleneck": (Bottleneck, 2)}[name]
        block = cls(8, planes, norm_layer=norm_layer, fused=fused)
    else:
        cls, out = {"basic": (BasicBlock, 16), "bottleneck": (Bottleneck, 64)}[name]
        shortcut = make_shortcut(option, 8, out, 2, norm_layer, fused=fused)
        block = cls(8, 16, 2, shortcut, norm_layer=norm_layer, fused=fused)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return block.double()


KINDS = ["plain"] + [
    f"{name} {option}" for name in ("basic", "bottleneck") for option in ("identity", *"ABC")
]


def step(block: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """One forward and backward: output, all gradients, all buffers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 8, 9, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    block.zero_grad()
    out = block(x)
    out.backward(torch.randn(out.shape, dtype=out.dtype, generator=generator))
    found = {"out": out.detach(), "dx": x.grad, **dict(block.named_buffers())}
    found |= {f"d{key}": p.grad for key, p in block.named_parameters() if p.grad is not None}
    return {key: tensor.clone() for key, tensor in found.items()}


def assert_same_step(fused: nn.Module, unfused: nn.Module) -> None:
    torch.testing.assert_close(step(fused), step(unfused), **FP64)


def launched(operator: str) -> int:
    """Launches of `operator` on any backend."""
    return sum(n for key, n in backends.counts().items() if key.startswith(f"{operator}:"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_is_the_same_block(kind, training):
    fused, unfused = (make_block(kind, flag) for flag in (True, False))
    # a step of training first, so that the running statistics of eval mode are not 0 and 1
    for block in (fused, unfused):
        step(block.train())
        block.train(training)
    backends.reset_counts()
    fused_step = step(fused)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in fused.modules())
    assert launched("chain_backward") + launched("expand_backward_weight") == convolutions
    torch.testing.assert_close(fused_step, step(unfused), **FP64)


@pytest.mark.parametrize("kind", KINDS)
def test_unfused_launches_nothing(kind):
    backends.reset_counts()
    step(make_block(kind, False))
    assert not backends.counts()


@pytest.mark.parametrize(
    "norm_layer",
    [
        lambda c: nn.BatchNorm2d(c, affine=False),
        lambda c: nn.BatchNorm2d(c, track_running_stats=False),
        lambda c: nn.BatchNorm2d(c, momentum=None, eps=1e-2),
        nn.SyncBatchNorm,
        lambda c: nn.GroupNorm(2, c),
        lambda c: nn.Identity(),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "basic identity", "bottleneck B"])
def test_norm_layers(kind, norm_layer):
    fused, unfused = (make_block(kind, flag, norm_layer) for flag in (True, False))
    for training in (True, True, False):
        assert_same_step(fused.train(training), unfused.train(training))


@pytest.mark.parametrize("frozen", ["bn1", "bn2", "downsample.1"])
def test_frozen_normalisation(frozen):
    fused, unfused = (make_block("basic B", flag) for flag in (True, False))
    for block in (fused, unfused):
        step(block)
        block.get_submodule(frozen).eval()
    assert_same_step(fused, unfused)


@pytest.mark.parametrize(
    "name", ["conv1.weight", "bn1.bias", "conv2.weight", "downsample.0.weight"]
)
def test_pieces_without_gradient(name):
    fused, unfused = (make_block("basic B", flag) for flag in (True, False))
    for block in (fused, unfused):
        block.get_parameter(name).requires_grad_(False)
    got = step(fused)
    assert f"d{name}" not in got
    torch.testing.assert_close(got, step(unfused), **FP64)


PLACES = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu", "downsample", "downsample.1"]
HOOKS = {
    "forward": lambda module, note: module.register_forward_hook(lambda *_: note()),
    "forward pre": lambda module, note: module.register_forward_pre_hook(lambda *_: note()),
    "backward": lambda module, note: module.register_full_backward_hook(lambda *_: note()),
    "backward pre": lambda module, note: module.register_full_backward_pre_hook(lambda *_: note()),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_fire(hook, place):
    fused, unfused = (make_block("bottleneck B", flag) for flag in (True, False))
    fired = []
    handle = HOOKS[hook](fused.get_submodule(place), lambda: fired.append(place))
    backends.reset_counts()
    assert_same_step(fused, unfused)
    assert len(fired) == (3 if place == "relu" else 1)
    # one operator less for a hooked piece of the branch, none without the ReLU that all share
    assert launched("bn_apply") == {"relu": 0}.get(place, 3 if "downsample" in place else 2)
    handle.remove()
    backends.reset_counts()
    step(fused)
    assert launched("chain_backward") + launched("expand_backward_weight") == 4
    assert len(fired) == (3 if place == "relu" else 1)


def test_a_hook_may_change_what_passes():
    block = make_block("basic A", True)
    block.bn2.register_forward_hook(lambda module, inputs, output: output * 0)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    assert torch.equal(block(x), block.downsample(x).relu())


def test_a_hook_on_the_padded_shortcut_fires():
    fused, unfused = (make_block("basic A", flag) for flag in (True, False))
    fired = []
    fused.downsample.register_forward_hook(lambda *_: fired.append(1))
    assert_same_step(fused, unfused)
    assert fired == [1]


def test_global_hooks_fire():
    block = make_block("basic identity", True)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        step(block)
    finally:
        handle.remove()
    assert seen.count(nn.Conv2d) == 2
    assert seen.count(nn.ReLU) == 2


def test_a_replaced_forward_is_called():
    block = make_block("basic identity", True)
    forward, called = block.conv1.forward, []
    block.conv1.forward = lambda x: (called.append(1), forward(x))[1]
    assert_same_step(block, make_block("basic identity", False))
    assert called == [1]


class Doubled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def replace(path: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    def change(block: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        torch.manual_seed(2)
        setattr(block.get_submodule(parent), name, make(block.get_submodule(path)).double())

    return change


def shape(conv: nn.Conv2d) -> dict:
    return {"kernel_size": 3, "stride": conv.stride, "padding": conv.padding}


CHANGES = {
    "convolution with a bias": replace("conv1", lambda c: nn.Conv2d(8, 16, **shape(c))),
    "reflecting convolution": replace(
        "conv2", lambda c: nn.Conv2d(16, 16, **shape(c), bias=False, padding_mode="reflect")
    ),
    "padding by name": replace("conv2", lambda c: nn.Conv2d(16, 16, 3, padding="same", bias=False)),
    "convolution of a subclass": replace("conv1", lambda c: Doubled(8, 16, **shape(c), bias=False)),
    "another norm": replace("bn1", lambda b: nn.GroupNorm(4, 16)),
    "no last norm": replace("bn2", lambda b: nn.Identity()),
    "another activation": replace("relu", lambda r: nn.SiLU()),
    "projection with a bias": replace("downsample.0", lambda c: nn.Conv2d(8, 16, 1, stride=2)),
    "projection of three": replace("downsample", lambda d: nn.Sequential(*d, nn.ReLU())),
    "average pooled projection": replace(
        "downsample",
        lambda d: nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(8, 16, 1), d[1]),
    ),
    "weight norm": lambda block: parametrizations.weight_norm(block.conv2),
    "pruning": lambda block: prune.l1_unstructured(block.conv1, "weight", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules(change):
    fused, unfused = (make_block("basic B", flag) for flag in (True, False))
    CHANGES[change](fused)
    CHANGES[change](unfused)
    assert_same_step(fused, unfused)
    untouched = step(make_block("basic B", False))
    assert not torch.equal(untouched["out"], step(fused)["out"])


@pytest.mark.parametrize(
    "size", [(2, 3, 7, 6, 3, 1), (2, 3, 7, 6, 4, 2), (0, 3, 4, 4, 6, 2), (1, 1, 1, 1, 17, 3)]
)
def test_pad_shortcut(size):
    n, c, h, w, out_channels, stride = size
    x = torch.randn(n, c, h, w, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(n, out_channels, (h - 1) // stride + 1, (w - 1) // stride + 1).double()
    expected[:, :c] = x.detach()[:, :, ::stride, ::stride]
    for fused in (False, True):
        module = PadShortcut(c, out_channels, stride, fused=fused)
        assert torch.equal(module(x), expected)
        (gradient,) = torch.autograd.grad(module(x).sum(), x)
        scattered = torch.zeros_like(gradient)
        scattered[:, :, ::stride, ::stride] = 1
        assert torch.equal(gradient, scattered)
    assert "stride=2" in repr(PadShortcut(3, 4, 2))


def test_bad_arguments():
    with pytest.raises(ValueError, match="out_channels must be at least in_channels=4, got 3"):
        PadShortcut(4, 3)
    with pytest.raises(ValueError, match="shortcut must be one of 'A', 'B', 'C', got 'D'"):
        make_shortcut("D", 3, 4, 1, nn.BatchNorm2d, fused=False)
    with pytest.raises(ValueError, match=r"variant must be one of 'v1', 'v1\.5', got '2'"):
        Bottleneck(8, 2, variant="2")
    with pytest.raises(ValueError, match="PlainBlock only supports groups=1"):
        PlainBlock(8, 8, groups=2)
    with pytest.raises(ValueError, match="downsample must be None"):
        PlainBlock(8, 8, downsample=nn.Identity())
    with pytest.raises(
        NotImplementedError, match="Dilation > 1 not supported in BasicBlock, got 2"
    ):
        BasicBlock(8, 8, dilation=2)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 1, dilation=2),
        nn.AvgPool2d(2),
        nn.Identity(),
    ],
)
def test_max_pool(pool):
    x = torch.randn(2, 3, 9, 8).to(memory_format=torch.channels_last)
    assert torch.equal(max_pool(x, pool, fused=True), pool(x))
    fired = []
    hooked = copy.deepcopy(pool)
    hooked.register_forward_hook(lambda *_: fired.append(1))
    max_pool(x, hooked, fused=True)
    assert fired == [1]


def test_full_backward_hooks_on_every_normalisation():
    """A full backward hook on a normalisation makes in-place changes of its output an error."""
    model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, width_per_group=8, fused=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_full_backward_hook(lambda *_: None)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
