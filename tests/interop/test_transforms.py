"""Fused networks computed again by a checkpoint, or transformed by torch.func."""

from __future__ import annotations

import warnings

import pytest
import torch
from interop.networks import (
    CLOSE,
    FORWARD,
    LIBRARIES,
    assert_close,
    assert_same_step,
    double,
    fused_path,
    gradients,
    images,
    state,
)
from interop.works_with import works_with
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastres
from fastres import functional
from fastres.functional import BatchNormState

# gradient checkpointing


class Checkpointed(nn.Module):
    """A network of torchvision's whose blocks, stages or stem are computed again in backward."""

    def __init__(self, net: nn.Module, what: str, reentrant: bool) -> None:
        super().__init__()
        self.net, self.what, self.reentrant = net, what, reentrant

    def again(self, module, x: Tensor) -> Tensor:
        return checkpoint(module, x, use_reentrant=self.reentrant)

    def stem(self, x: Tensor) -> Tensor:
        net = self.net
        if hasattr(net, "run_stem"):
            return net.run_stem(x)
        return net.maxpool(net.relu(net.bn1(net.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = self.again(self.stem, x) if self.what == "stem" else self.stem(x)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for module in stage if self.what == "blocks" else [stage]:
                x = self.again(module, x)
        return net.fc(net.avgpool(x).flatten(1))


@works_with(
    "gradient checkpointing of stem, stages and blocks, reentrant or not; running statistics "
    "count each batch once"
)
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("what", ["stem", "stages", "blocks"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(reentrant, what, memory):
    plain, fused = double()
    fastres.fuse(fused, memory=memory)
    x = images(dtype=torch.float64).requires_grad_()
    expected, wanted = gradients(plain, x)
    with fused_path():
        result, found = gradients(Checkpointed(fused, what, reentrant), x)
    torch.testing.assert_close(result, expected, **CLOSE)
    assert_close({name[4:]: gradient for name, gradient in found.items()}, wanted)
    assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))
    assert int(fused.bn1.num_batches_tracked) == int(fused.layer4[0].bn3.num_batches_tracked) == 1


@works_with("timm's `set_grad_checkpointing`")
@pytest.mark.parametrize("reentrant", [True, False])
def test_timm_checkpointing(reentrant, monkeypatch):
    from timm.layers import config

    monkeypatch.setattr(config, "_USE_REENTRANT_CKPT", reentrant)
    plain, fused = double("timm")
    fused.set_grad_checkpointing(True)
    assert_same_step(plain, fused, images(dtype=torch.float64))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_operators(reentrant, momentum):
    """The functions themselves, each with a BN of its own."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)

    def norms() -> list[nn.BatchNorm2d]:
        return [nn.BatchNorm2d(4, momentum=momentum).double() for _ in range(4)]

    def run(x: Tensor, bns: list[nn.BatchNorm2d]) -> Tensor:
        a, b, c, d = (BatchNormState.of(bn) for bn in bns)
        x = fastres.conv_bn_act(x, w, a, padding=1)
        y = functional.conv2d(x, w, padding=1)
        x = fastres.conv_bn_add_act(x, w, b, y, shortcut_bn=c, padding=1)
        return fastres.conv_bn_max_pool(x, w, d, padding=1)

    found = []
    for again in (False, True):
        bns = norms()
        out = checkpoint(run, x, bns, use_reentrant=reentrant) if again else run(x, bns)
        found.append([out, *torch.autograd.grad(out.square().sum(), (x, w))] if not reentrant
                     else [out, *backward(out, x, w)])  # fmt: skip
        found[-1] += [value for bn in bns for value in bn.buffers()]
        assert all(int(bn.num_batches_tracked) == 1 for bn in bns)
    torch.testing.assert_close(found[1], found[0])


def backward(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    out.square().sum().backward()
    return [leaf.grad.clone() for leaf in leaves]


# torch.func


@works_with("`torch.func.functional_call`")
@pytest.mark.parametrize("library", LIBRARIES)
def test_functional_call(library):
    plain, fused = double(library)
    x = images(dtype=torch.float64)
    results = []
    for model in (plain, fused):
        before = state(model)
        given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        with fused_path() if model is fused else warnings.catch_warnings():
            out = functional_call(model, (given, buffers), (x,))
            out.square().mean().backward()
        assert_close(state(model), before, rtol=0, atol=0)
        assert all(p.grad is None for p in model.parameters())
        results.append({"out": out, **{n: p.grad for n, p in given.items()}, **buffers})
    assert_close(results[1], results[0])


@works_with(
    "`torch.func`: `grad`, `vmap` and `vjp` of a fused network, which then calls its modules"
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_transformed(library):
    plain, fused = (model.eval() for model in double(library))
    x = images(2, size=32, dtype=torch.float64)

    def loss(model: nn.Module):
        buffers = dict(model.named_buffers())

        def of(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(model, (parameters, buffers), (x[None],)).square().mean()

        parameters = {name: p.detach() for name, p in model.named_parameters()}
        each = torch.func.vmap(torch.func.grad(of), in_dims=(None, 0))
        return {name: g for name, g in each(parameters, x).items() if "bn" in name or "fc" in name}

    assert_close(loss(fused), loss(plain))
    expected, found = (torch.func.vjp(model, x)[1](torch.ones(2, 10).double()) for model in
                       (plain, fused))  # fmt: skip
    torch.testing.assert_close(found, expected, **CLOSE)
    with fused_path(FORWARD):
        torch.testing.assert_close(fused(x), plain(x), **CLOSE)


def calls() -> dict[str, object]:
    """Every function of `fastres.functional` on an x [N, 4, H, W]."""
    w = torch.randn(4, 4, 3, 3)
    bn = BatchNormState(torch.ones(4), torch.zeros(4), None, None)
    block = fastres.ResidualBlock((fastres.ConvBN(w, bn, padding=1),))
    return {
        "conv_bn_act": lambda x: fastres.conv_bn_act(x, w, bn, padding=1),
        "conv_bn_add_act": lambda x: fastres.conv_bn_add_act(x, w, bn, x, padding=1),
        "bn_act": lambda x: fastres.bn_act(x, bn),
        "bn_add_act": lambda x: fastres.bn_add_act(x, bn, x),
        "conv2d": lambda x: functional.conv2d(x, w),
        "pad_shortcut": lambda x: fastres.pad_shortcut(x, 6),
        "max_pool2d": lambda x: functional.max_pool2d(x, 2),
        "conv_bn_max_pool": lambda x: fastres.conv_bn_max_pool(x, w, bn),
        "residual_blocks": lambda x: fastres.residual_blocks(x, [block]),
    }


@pytest.mark.parametrize("name", calls())
def test_operators_say_that_they_cannot_be_transformed(name):
    call = calls()[name]
    x = torch.randn(2, 4, 6, 6)
    call(x)
    message = rf"fastres\.functional\.{name} cannot be transformed by torch\.func .* Take gradients"
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: call(x).sum())(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.vmap(call)(x[None])
