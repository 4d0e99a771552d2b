"""Whole blocks against autograd through PyTorch's own modules, in double precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastres import backends, functional
from fastres.functional import BatchNormState, ConvBN, ResidualBlock, residual_blocks
from fastres.layers import BasicBlock, Bottleneck, PadShortcut, PlainBlock

EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _reference():
    with backends.backend("reference"):
        backends.reset_counts()
        yield


def conv_bn(conv: nn.Conv2d, bn: nn.Module) -> ConvBN:
    return ConvBN(
        conv.weight, BatchNormState.of(bn), conv.stride, conv.padding, conv.dilation, conv.groups
    )


def described(block: nn.Module) -> ResidualBlock:
    layers = [conv_bn(block.conv1, block.bn1), conv_bn(block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        layers.append(conv_bn(block.conv3, block.bn3))
    down = block.downsample
    if isinstance(block, PlainBlock):
        return ResidualBlock(tuple(layers), "none")
    if down is None:
        return ResidualBlock(tuple(layers))
    if isinstance(down, PadShortcut):
        return ResidualBlock(tuple(layers), down.stride)
    return ResidualBlock(tuple(layers), conv_bn(*down))


def projection(inner: int, outer: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))


RUNS = {
    "bottleneck": lambda: [Bottleneck(32, 8)],
    "bottlenecks": lambda: [Bottleneck(32, 8) for _ in range(3)],
    "projection": lambda: [Bottleneck(12, 8, 2, projection(12, 32, 2)), Bottleneck(32, 8)],
    "projection, v1": lambda: [
        Bottleneck(12, 8, 2, projection(12, 32, 2), variant="v1"), Bottleneck(32, 8),
    ],
    "projection, wide": lambda: [Bottleneck(40, 8, 1, projection(40, 32, 1))],
    "padded bottleneck": lambda: [Bottleneck(12, 8, 2, PadShortcut(12, 32, 2))],
    "grouped": lambda: [Bottleneck(32, 8, groups=4, base_width=32)],
    "dilated": lambda: [Bottleneck(32, 8, dilation=2)],
    "odd": lambda: [Bottleneck(20, 5), Bottleneck(20, 5)],
    "basic": lambda: [BasicBlock(6, 6), BasicBlock(6, 6)],
    "basic projection": lambda: [BasicBlock(6, 8, 2, projection(6, 8, 2)), BasicBlock(8, 8)],
    "basic padded": lambda: [BasicBlock(6, 8, 2, PadShortcut(6, 8, 2)), BasicBlock(8, 8)],
    "plain": lambda: [PlainBlock(6, 8, 2), PlainBlock(8, 8)],
}  # fmt: skip


def made(name: str) -> nn.Sequential:
    torch.manual_seed(3)
    run = nn.Sequential(*RUNS[name]()).double()
    for module in run.modules():
        if isinstance(module, nn.BatchNorm2d):
            for vector in (module.weight, module.running_var):
                nn.init.uniform_(vector, 0.5, 1.5)
            for vector in (module.bias, module.running_mean):
                nn.init.normal_(vector)
    return run


def first_channels(run: nn.Sequential) -> int:
    return run[0].conv1.in_channels


def step(call, run: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = call(x)
    torch.manual_seed(9)
    out.backward(torch.randn(out.shape, dtype=out.dtype))
    found = {"out": out.detach(), "dx": x.grad}
    found |= {f"d {name}": p.grad for name, p in run.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in run.named_buffers()}


def assert_same(ours: dict, theirs: dict, **tolerance) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=lambda m, n=name: f"{n}: {m}",
                                   **(tolerance or EXACT))  # fmt: skip


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_its_modules_are(name, memory):
    theirs = made(name)
    ours = copy.deepcopy(theirs)
    x = torch.randn(3, first_channels(theirs), 9, 7, dtype=torch.float64)

    def call(x):
        return residual_blocks(x, [described(block) for block in ours], memory=memory)

    assert_same(step(call, ours, x), step(theirs, theirs, x))


def test_bottlenecks_run_in_moment_form():
    run = made("projection")
    x = torch.randn(2, 12, 16, 16, dtype=torch.float64)
    call = lambda x: residual_blocks(x, [described(b) for b in run], memory="low")  # noqa: E731
    step(call, run, x)
    counts = backends.counts()
    assert counts["moments:reference"] == 3
    assert counts["expand_reduce:reference"] == counts["expand:reference"] == 1
    assert counts["expand_backward_weight:reference"] == 3
    assert counts["expand_backward_data:reference"] == 3
    assert counts["chain_backward:reference"] == 4


@pytest.mark.parametrize("name", RUNS)
def test_frozen_statistics(name):
    theirs = made(name).eval()
    ours = copy.deepcopy(theirs)
    x = torch.randn(2, first_channels(theirs), 6, 8, dtype=torch.float64)
    call = lambda x: residual_blocks(x, [described(b) for b in ours], memory="low")  # noqa: E731
    assert_same(step(call, ours, x), step(theirs, theirs, x))


PARTS = ["conv1", "bn1", "conv2", "bn2", "downsample"]


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("projection", part) for part in [*PARTS, "conv3", "bn3"]]
    + [("bottlenecks", part) for part in [*PARTS[:-1], "conv3", "bn3"]]
    + [("basic projection", part) for part in PARTS],
)
def test_parts_that_want_no_gradient(name, frozen):
    theirs = made(name)
    getattr(theirs[0], frozen).requires_grad_(False)
    if frozen.startswith("bn"):
        getattr(theirs[0], frozen).eval()
    ours = copy.deepcopy(theirs)
    x = torch.randn(2, first_channels(theirs), 6, 8, dtype=torch.float64)
    call = lambda x: residual_blocks(x, [described(b) for b in ours], memory="low")  # noqa: E731
    assert_same(step(call, ours, x), step(theirs, theirs, x))


def test_only_the_last_parameters_want_a_gradient():
    theirs = made("bottlenecks")
    for block in list(theirs)[:2]:
        block.requires_grad_(False)
    ours = copy.deepcopy(theirs)
    x = torch.randn(2, 32, 6, 8, dtype=torch.float64)
    call = lambda x: residual_blocks(x, [described(b) for b in ours], memory="low")  # noqa: E731
    for model, forward in ((theirs, theirs), (ours, call)):
        model.zero_grad()
        forward(x).square().sum().backward()
    backends.reset_counts()
    call(x).sum().backward()
    assert backends.counts()["expand_backward_weight:reference"] == 1
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)


def test_the_gradient_of_x_alone():
    theirs = made("projection").requires_grad_(False)
    x = torch.randn(2, 12, 6, 8, dtype=torch.float64)
    ours = copy.deepcopy(theirs)
    call = lambda x: residual_blocks(x, [described(b) for b in ours], memory="low")  # noqa: E731
    assert_same(step(call, ours, x), step(theirs, theirs, x))


def test_gradcheck_in_moment_form():
    run = made("projection")
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in run.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(
            Described(run), {f"run.{n}": p for n, p in zip(names, parameters, strict=True)}, (x,)
        )

    class Described(nn.Module):
        def __init__(self, run):
            super().__init__()
            self.run = run

        def forward(self, x):
            return residual_blocks(x, [described(b) for b in self.run], memory="low")

    assert torch.autograd.gradcheck(call, (x, *run.parameters()), nondet_tol=0.0, fast_mode=True)


def test_an_empty_batch_changes_nothing():
    run = made("projection")
    before = {name: buffer.clone() for name, buffer in run.named_buffers()}
    x = torch.zeros(0, 12, 8, 8, dtype=torch.float64, requires_grad=True)
    out = residual_blocks(x, [described(block) for block in run], memory="low")
    out.sum().backward()
    assert out.shape == (0, 32, 4, 4)
    for name, buffer in run.named_buffers():
        if name.endswith("tracked"):
            assert buffer == before[name] + 1
        else:
            torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)
    assert all(not p.grad.any() for p in run.parameters())


def test_gradients_are_repeatable_bit_for_bit():
    run = made("projection")
    x = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    call = lambda x: residual_blocks(x, [described(b) for b in run], memory="low")  # noqa: E731
    first = step(call, run, x)
    run.zero_grad()
    again = step(call, run, x)
    for name, value in first.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, again[name]), name


def test_errors_name_what_is_wrong():
    run = made("projection")
    x = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    blocks = [described(block) for block in run]
    with pytest.raises(ValueError, match="blocks must hold at least one"):
        residual_blocks(x, [])
    with pytest.raises(ValueError, match="memory must be one of 'fast', 'low', got 'tiny'"):
        residual_blocks(x, blocks, memory="tiny")
    with pytest.raises(ValueError, match="x must have 12 channels"):
        residual_blocks(x[:, :5], blocks)
    with pytest.raises(ValueError, match="shortcut must give the block's output"):
        residual_blocks(x, [blocks[0]._replace(shortcut=blocks[0].layers[0])])
    with pytest.raises(ValueError, match=r"shortcut, read at every 1\. place"):
        residual_blocks(x, [blocks[0]._replace(shortcut=None)])
    with pytest.raises(TypeError, match="floating-point"):
        residual_blocks(x.long(), blocks)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        residual_blocks(x[:1, :, :1, :1], blocks)
    assert functional.residual_blocks is residual_blocks


@pytest.mark.parametrize("momentum", [0.3, None, "mixed"])
def test_running_statistics_of_a_run(momentum):
    """Several BNs are updated together; a cumulative average, another dtype or no buffers by
    itself."""
    theirs = made("projection")
    for index, module in enumerate(m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        module.momentum = (0.1 * (index % 3) or None) if momentum == "mixed" else momentum
    theirs[1].bn1 = nn.BatchNorm2d(8, track_running_stats=False).double()
    for module in (theirs[1].bn2, theirs[1].bn3):
        module.num_batches_tracked = None
    ours = copy.deepcopy(theirs)
    for _ in range(3):
        x = torch.randn(3, 12, 9, 7, dtype=torch.float64)
        theirs(x)
        residual_blocks(x, [described(block) for block in ours], memory="low")
    for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_norm_that_runs_twice_is_updated_twice():
    theirs = made("bottleneck")
    ours = copy.deepcopy(theirs)
    x = torch.randn(3, 32, 6, 5, dtype=torch.float64)
    theirs(theirs(x))
    residual_blocks(x, [described(ours[0])] * 2)
    for buffer, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, **EXACT)
