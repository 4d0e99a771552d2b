"""`fuse` and `unfuse`: the same objects, the same numbers, and what is left alone."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from interop.networks import LIBRARIES, images, kinds, small, timm, torchvision, twins
from interop.works_with import PAGE, page, works_with
from torch import nn

import fastres
from fastres import backends
from fastres.interop import left_alone
from fastres.layers import Block

# what one step may differ by in fp64: the two only sum in another order
CLOSE = {"rtol": 1e-7, "atol": 1e-9}
NETWORKS = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision resnext": lambda: small("torchvision"),
    "torchvision wide, dilated": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        [1, 1, 1, 1],
        num_classes=10,
        width_per_group=128,
        replace_stride_with_dilation=[False, True, True],
    ),
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "timm resnext": lambda: small("timm"),
    "timm deep stem, average pooling in the shortcut": lambda: timm.models.ResNet(
        timm.models.resnet.Bottleneck,
        [1, 1, 1, 1],
        num_classes=10,
        stem_type="deep",
        stem_width=8,
        avg_down=True,
    ),
}


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    out = model(x)
    out.square().mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics(name):
    plain, fused = twins(lambda: NETWORKS[name]().double().train())
    x = images(dtype=torch.float64)
    expected, wanted = gradients(plain, x)
    backends.reset_counts()
    result, found = gradients(fused, x)
    assert backends.counts()["conv_stats:reference"] > 0, "the fused path did not run"
    torch.testing.assert_close(result, expected, **CLOSE)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], **CLOSE, msg=key)
    for (key, a), b in zip(plain.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(b, a, **CLOSE, msg=key)
    plain.eval(), fused.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), **CLOSE)


@works_with("torchvision and timm ResNets, in place, and back")
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_objects(library):
    model = small(library).train()
    model.layer1.eval()
    model.layer2[0].conv1.weight.requires_grad_(False)
    seen: list[str] = []
    model.layer3.register_forward_hook(lambda *_: seen.append("layer3"))
    model.layer4[0].register_forward_hook(lambda *_: seen.append("layer4.0"))
    before = kinds(model)
    modules = dict(model.named_modules())
    tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    assert fastres.fuse(model) is model
    assert sum(isinstance(module, Block) for module in model.modules()) == 5
    assert kinds(model) != before
    assert dict(model.named_modules()) == modules
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == tensors
    assert [module.training for module in model.modules()] == modes
    assert not model.layer2[0].conv1.weight.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert isinstance(model.layer1[0], before[list(modules).index("layer1.0")])
    model(images())
    assert seen == ["layer3", "layer4.0"] or sorted(seen) == ["layer3", "layer4.0"]

    assert fastres.unfuse(model) is model
    assert kinds(model) == before


def test_fusing_twice_is_fusing_once():
    model = fastres.fuse(small())
    before = kinds(model)
    assert kinds(fastres.fuse(model, strict=True)) == before


def test_what_was_set_on_a_fused_module_is_gone_with_it():
    model = small()
    before = [set(vars(module)) for module in model.modules()]
    fastres.fuse(model)
    model.amp = torch.bfloat16
    model.layer1[0].fused = False
    assert {row.path for row in fastres.explain(model.layer1).rows} == {"modules"}
    fastres.unfuse(model)
    assert [set(vars(module)) for module in model.modules()] == before
    assert model.layer1[0].relu.inplace


def test_hooks_at_the_time_of_fusing_do_not_matter():
    """What is hooked then is fused once the hook is gone."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), small().layer2
    )
    plain = copy.deepcopy(model)
    handles = [
        nn.modules.module.register_module_forward_hook(lambda *_: None),
        model[1].register_forward_hook(lambda *_: None),
        model[3][0].conv1.register_forward_hook(lambda *_: None),
    ]
    fastres.fuse(model, strict=True)
    for handle in handles:
        handle.remove()
    assert [row.path for row in fastres.explain(model).rows] == ["operators", *["whole block"] * 2]
    assert kinds(fastres.unfuse(model)) == kinds(plain)


@works_with("an optimiser made before fusing")
def test_an_optimiser_made_before():
    plain, fused = small().double(), small().double()
    steps = []
    for model, fuse in ((plain, False), (fused, True)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if fuse:
            fastres.fuse(model)
        for seed in range(3):
            optimizer.zero_grad()
            model(images(dtype=torch.float64, seed=seed)).square().mean().backward()
            optimizer.step()
        steps.append(model.state_dict())
    for key, value in steps[0].items():
        torch.testing.assert_close(steps[1][key], value, rtol=1e-6, atol=1e-8, msg=key)


@works_with("`copy.deepcopy`, `pickle`, `torch.save` of whole models")
@pytest.mark.parametrize("library", LIBRARIES)
def test_copies(library):
    model = fastres.fuse(small(library)).eval()
    x = images()
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    )
    for one in copies:
        assert kinds(one) == kinds(model)
        assert torch.equal(one(x), expected)


@works_with("state_dicts of the unfused model, both ways")
@pytest.mark.parametrize("library", LIBRARIES)
def test_state_dicts(library):
    plain, fused = twins(lambda: small(library))
    assert list(fused.state_dict()) == list(plain.state_dict())
    for p in plain.parameters():
        p.data.add_(1)
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())


def test_memory_low():
    model = fastres.fuse(small(), memory="low")
    assert {m.memory for m in model.modules() if isinstance(m, Block)} == {"low"}
    fastres.unfuse(model)
    assert all("memory" not in module.__dict__ for module in model.modules())
    with pytest.raises(ValueError, match="memory must be one of 'fast', 'low', got 'lower'"):
        fastres.fuse(model, memory="lower")


def test_networks_of_our_own():
    model = fastres.resnet18(num_classes=10)
    fastres.fuse(model)
    assert model.fused
    assert all(m.fused and not m.relu.inplace for m in model.modules() if isinstance(m, Block))
    fastres.unfuse(model)
    assert not any(m.fused for m in model.modules() if isinstance(m, Block))


LEFT = {
    "se": (lambda: timm.create_model("seresnet50"), "se is a SEModule"),
    "drop path": (
        lambda: timm.create_model("resnet50", drop_path_rate=0.1),
        "drop_path is a DropPath",
    ),
    "anti-aliasing": (lambda: timm.create_model("resnetblur50"), "aa is a BlurPool2d"),
    "GroupNorm": (
        lambda: torchvision.models.resnet18(norm_layer=lambda c: nn.GroupNorm(8, c)),
        "bn1 is a GroupNorm",
    ),
    "another activation": (
        lambda: timm.create_model("resnet18", act_layer="silu"),
        "act1 is a SiLU",
    ),
}


@works_with("models with blocks that are not fused: named, and left as they are")
@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name):
    make, why = LEFT[name]
    model = make()
    before = kinds(model)
    assert why in {one.why for one in left_alone(model)}
    with pytest.raises(ValueError, match=why):
        fastres.fuse(model, strict=True)
    assert kinds(model) == before, "strict changed something before it raised"
    fastres.fuse(model)
    for one in left_alone(model):
        assert not isinstance(model.get_submodule(one.name), Block)
    assert why in str(fastres.explain(model))


class Odd(torchvision.models.resnet.BasicBlock):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_class_derived_from_a_block_is_left_alone():
    model = torchvision.models.ResNet(Odd, [1, 1, 1, 1])
    assert {one.why for one in left_alone(model)} == {
        "Odd is not one of the classes that are fused"
    }


@works_with("any `nn.Sequential` of convolution, BN and ReLU")
def test_any_sequence():
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, bias=True), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
            nn.Flatten(), nn.LazyLinear(5),
        ).double()  # fmt: skip

    x = images(size=12, dtype=torch.float64)
    plain, fused = make(), make()
    plain(x), fused(x)  # shapes of the lazy layer
    fused.load_state_dict(plain.state_dict())
    fastres.fuse(fused)
    backends.reset_counts()
    result, found = gradients(fused, x)
    assert backends.counts()["conv_stats:reference"] == 2
    expected, wanted = gradients(plain, x)
    torch.testing.assert_close(result, expected, **CLOSE)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], **CLOSE, msg=key)
    assert kinds(fastres.unfuse(fused)) == kinds(plain)


def test_wrapped_models_are_refused():
    model = small()
    with pytest.raises(TypeError, match="fused before it is wrapped in DataParallel"):
        fastres.fuse(nn.DataParallel(model))
    with pytest.raises(TypeError, match=r"fused before torch\.compile"):
        fastres.fuse(torch.compile(model))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        fastres.fuse("resnet50")
    compiled = small()
    compiled.compile()
    with pytest.raises(TypeError, match=r"fused before torch\.compile"):
        fastres.fuse(compiled)


def test_nothing_to_fuse():
    with pytest.warns(UserWarning, match="nothing to fuse in Linear"):
        fastres.fuse(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="nothing to fuse in Linear"):
        fastres.fuse(nn.Linear(2, 2), strict=True)


def test_the_table_is_made_from_the_tests():
    assert PAGE.read_text() == page(), "run: python tests/interop/works_with.py --write"
