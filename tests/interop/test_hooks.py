"""Fused networks with hooks, and with convolutions that somebody changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from interop.networks import (
    CLOSE,
    LIBRARIES,
    assert_close,
    assert_same_step,
    double,
    gradients,
    images,
    small,
)
from interop.works_with import works_with
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastres


def paths(model: nn.Module) -> dict[str, str]:
    return {row.name: row.path for row in fastres.explain(model).rows}


# hooks


def watched(block: nn.Module, name: str) -> nn.Module:
    """A module of a block; the last ReLU is called act3 in timm."""
    if name == "relu":
        return getattr(block, "relu", None) or block.act2
    return block.get_submodule(name)


INNER = ("conv2", "bn3", "relu", "downsample", "downsample.0")


@works_with("forward hooks and pre-hooks on layers inside a block: that block alone is taken apart")
@pytest.mark.parametrize(
    ("library", "name"),
    [*(("torchvision", name) for name in INNER), ("timm", "relu"), ("timm", "drop_block")],
)
def test_forward_hooks_inside_a_block(library, name):
    plain, fused = double(library)
    before = paths(fused)
    assert set(before.values()) == {"whole stem", "whole block"}
    x = images(dtype=torch.float64)
    seen: list[list[Tensor]] = []
    removable = []
    for model in (plain, fused):
        seen.append([])
        module = watched(model.layer2[0], name)
        removable = [
            module.register_forward_pre_hook(
                lambda _, given, to=seen[-1]: to.append(given[0].clone())
            ),
            # what a hook returns is what the next layer gets
            module.register_forward_hook(
                lambda _, given, out, to=seen[-1]: to.append(out.clone()) or out * 1.5
            ),
        ]
    during = paths(fused)
    # torchvision's ReLU belongs to every layer of the block; timm's own forward knows drop_block
    apart = (
        "modules"
        if (library, name) in (("torchvision", "relu"), ("timm", "drop_block"))
        else ("operators")
    )
    assert during == before | {"layer2.0": apart}
    assert_same_step(plain, fused, x)
    assert len(seen[0]) == len(seen[1]) > 0
    for want, found in zip(*seen, strict=True):
        torch.testing.assert_close(found, want, **CLOSE)
    for handle in removable:
        handle.remove()
    assert paths(fused) == before


@works_with("full backward hooks on layers inside a block")
@pytest.mark.parametrize("name", ["conv2", "relu", "downsample"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_backward_hooks_inside_a_block(library, name):
    plain, fused = double(library)
    seen: list[list[Tensor]] = []
    for model in (plain, fused):
        seen.append([])
        module = watched(model.layer2[0], name)
        if name == "relu":
            module.inplace = False  # torch refuses these hooks on modules that work in place
        module.register_full_backward_hook(
            lambda _, grad_in, grad_out, to=seen[-1]: to.extend((grad_in[0], grad_out[0]))
        )
        module.register_full_backward_pre_hook(
            lambda _, grad_out, to=seen[-1]: to.append(grad_out[0])
        )
    assert_same_step(plain, fused, images(dtype=torch.float64))
    assert len(seen[0]) == len(seen[1]) > 0
    for want, found in zip(*seen, strict=True):
        torch.testing.assert_close(found, want, **CLOSE)
    assert list(paths(fused).values()).count("whole block") == 4


@works_with("forward, backward and tensor hooks on blocks, stages and networks")
@pytest.mark.parametrize("library", LIBRARIES)
def test_hooks_on_blocks_and_stages(library):
    plain, fused = double(library)
    seen: list[dict[str, Tensor]] = []
    for model in (plain, fused):
        seen.append({})
        for name in ("layer2.0", "layer2.1", "layer3", "maxpool", "fc"):

            def keep(module, given, out, name=name, to=seen[-1]) -> None:
                to[name] = out.detach().clone()
                out.register_hook(lambda grad: to.update({f"gradient of {name}": grad.clone()}))

            model.get_submodule(name).register_forward_hook(keep)
        model.layer4[0].register_full_backward_hook(
            lambda _, grad_in, grad_out, to=seen[-1]: to.update(
                {"into layer4.0": grad_in[0].clone(), "out of layer4.0": grad_out[0].clone()}
            )
        )
    assert_same_step(plain, fused, images(dtype=torch.float64))
    assert len(seen[0]) == 12
    assert_close(dict(sorted(seen[1].items())), dict(sorted(seen[0].items())))
    # a block that is watched from outside is whole all the same
    assert list(paths(fused).values()).count("whole block") == 5


@works_with("global module hooks: everything is called as long as one is registered")
def test_global_hooks():
    plain, fused = double()
    x = images(dtype=torch.float64)
    seen: list[list[str]] = []
    for model in (plain, fused):
        seen.append([])
        names = {module: name for name, module in model.named_modules()}

        def note(module, given, out, names=names, to=seen[-1]) -> None:
            to.append(names[module])

        handle = nn.modules.module.register_module_forward_hook(note)
        try:
            if model is fused:
                assert "whole block" not in paths(fused).values()
            seen[-1].append(gradients(model, x)[0])
        finally:
            handle.remove()
    torch.testing.assert_close(seen[1].pop(), seen[0].pop(), **CLOSE)
    # the projection is called before the last convolution, in torchvision after it
    assert sorted(seen[1]) == sorted(seen[0])
    assert_same_step(plain, fused, x)


# changed convolutions


def weight_norm_of_old(conv: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(conv)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "parametrize": lambda conv: parametrize.register_parametrization(conv, "weight", Halved()),
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of old": weight_norm_of_old,
    "spectral_norm": parametrizations.spectral_norm,
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", amount=0.5),
}


@works_with("`parametrize`, `weight_norm`, `spectral_norm` and `prune` on a layer inside a block")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_changed_convolutions(name, when):
    def changed(model: nn.Module) -> nn.Module:
        torch.manual_seed(3)  # spectral_norm starts at a random vector
        CHANGES[name](model.layer2[1].conv2)
        return model

    if when == "before":
        # not a copy: a weight that is computed cannot be copied
        plain = changed(small().double())
        fused = fastres.fuse(changed(small().double()))
    else:
        plain, fused = (changed(model) for model in double())
    assert paths(fused)["layer2.1"] == "operators"
    assert list(paths(fused).values()).count("whole block") == 4
    torch.manual_seed(4)
    for seed in (1, 2):
        assert_same_step(plain, fused, images(dtype=torch.float64, seed=seed))
    if name == "prune":
        for model in (plain, fused):
            prune.remove(model.layer2[1].conv2, "weight")
        assert paths(fused)["layer2.1"] == "whole block"
        assert_same_step(plain, fused, images(dtype=torch.float64))
