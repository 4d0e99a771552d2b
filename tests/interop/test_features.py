"""Parts of fused networks inside others: extractors, segmentation, detection, timm's features."""

from __future__ import annotations

import copy

import pytest
import torch
from interop.networks import (
    CLOSE,
    FORWARD,
    LIBRARIES,
    assert_close,
    assert_same_step,
    fused_path,
    images,
    small,
    timm,
    torchvision,
    twins,
)
from interop.works_with import works_with
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation import deeplabv3, fcn
from torchvision.ops import FrozenBatchNorm2d

import fastres

LAYERS = {"layer1": "a", "layer3": "b", "layer4": "c"}


def step(model: nn.Module, *given) -> dict[str, Tensor]:
    """All outputs, and the gradients of a loss of all of them."""
    out = model(*given)
    if isinstance(out, (list, tuple)):
        out = {str(index): one for index, one in enumerate(out)}
    loss = sum(
        (one * (1 + index)).square().mean() if one.ndim else one
        for index, one in enumerate(out.values())
    )
    loss.backward()
    found = {key: one.detach() for key, one in out.items()}
    return found | {f"d {name}": p.grad for name, p in model.named_parameters()}


def assert_same(plain: nn.Module, fused: nn.Module, *given) -> None:
    """One step of both in fp64: outputs, gradients, buffers."""
    torch.manual_seed(1)
    expected = step(plain, *given)
    torch.manual_seed(1)
    with fused_path():
        found = step(fused, *given)
    assert_close(found, expected)
    assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))


def whole(model: nn.Module) -> int:
    """How many blocks run whole."""
    return sum(row.path == "whole block" for row in fastres.explain(model).rows)


@works_with("torchvision's `create_feature_extractor`, of blocks and stages")
@pytest.mark.parametrize("library", LIBRARIES)
def test_feature_extractor(library):
    plain, fused = twins(lambda: small(library).double())
    names = {"layer1": "a", "layer2.0": "b", "layer4": "c"}
    assert_same(
        create_feature_extractor(plain, names),
        create_feature_extractor(fused, names),
        images(dtype=torch.float64),
    )


@works_with("torchvision's `IntermediateLayerGetter`, made before or after fusing")
@pytest.mark.parametrize("when", ["before", "after"])
def test_layer_getter(when):
    plain = small().double()
    fused = copy.deepcopy(plain)
    if when == "after":
        fastres.fuse(fused)
    getters = [IntermediateLayerGetter(model, dict(LAYERS)) for model in (plain, fused)]
    if when == "before":
        fastres.fuse(getters[1])
        assert fastres.explain(getters[1]).rows[0].path == "whole stem"
    assert_same(*getters, images(dtype=torch.float64))
    assert whole(getters[1]) == 5


def segmentation(kind: str) -> nn.Module:
    backbone = small(replace_stride_with_dilation=[False, True, True])
    make = {"fcn": fcn._fcn_resnet, "deeplabv3": deeplabv3._deeplabv3_resnet}[kind]
    model = make(backbone, 3, True).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@works_with("torchvision's FCN and DeepLabV3: backbone, head and auxiliary head")
@pytest.mark.parametrize("kind", ["fcn", "deeplabv3"])
def test_segmentation(kind):
    plain, fused = twins(lambda: segmentation(kind))
    rows = fastres.explain(fused).rows
    assert whole(fused) == 5
    heads = [row.name for row in rows if row.path == "operators"]
    assert heads == {
        "fcn": ["classifier", "aux_classifier"],
        "deeplabv3": [
            "classifier", "classifier.0.convs.0", "classifier.0.convs.1", "classifier.0.convs.2",
            "classifier.0.convs.3", "classifier.0.project", "aux_classifier",
        ],
    }[kind]  # fmt: skip
    assert_same(plain, fused, images(2, dtype=torch.float64))
    assert type(fastres.unfuse(fused).classifier) is type(plain.classifier)


def detector() -> nn.Module:
    backbone = small(norm_layer=FrozenBatchNorm2d)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for vector in module.buffers():
                nn.init.uniform_(vector, 0.4, 0.8)
    body = _resnet_fpn_extractor(backbone, trainable_layers=3)
    return FasterRCNN(body, num_classes=3, min_size=64, max_size=64).double()


@works_with("torchvision's Faster R-CNN: FPN, `FrozenBatchNorm2d`, frozen layers")
def test_detection():
    plain, fused = twins(detector)
    assert whole(fused) == 5
    assert {row.path for row in fastres.explain(fused).rows} == {"whole stem", "whole block"}
    x = list(images(2, dtype=torch.float64))
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]], dtype=torch.float64)
    targets = [{"boxes": box, "labels": torch.tensor([1])} for _ in x]
    assert_same(plain, fused, x, targets)
    assert all(p.grad is None for p in fused.backbone.body.layer1.parameters())


# timm


@works_with("timm's `features_only`, as list, dict, with hooks and as getter")
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
def test_timm_features_only(kind):
    def make() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(
            "resnet18", features_only=True, feature_cls=kind, channels=(16, 32, 64, 128)
        ).double()

    plain, fused = twins(make)
    assert whole(fused) == 8
    assert_same(plain, fused, images(dtype=torch.float64))


@works_with("timm's `features_only` by `torch.fx`")
def test_timm_features_by_fx():
    """The graph is made of the network when it is fused already."""
    from fastres.interop import register_timm

    register_timm()
    models = []
    for name in ("resnet18", "fastres_resnet18"):
        torch.manual_seed(0)
        models.append(
            timm.create_model(
                name, features_only=True, feature_cls="fx", channels=(16, 32, 64, 128),
                out_indices=(1, 2, 4),
            ).double()
        )  # fmt: skip
    assert_same(*models, images(dtype=torch.float64))


@works_with("timm's `forward_features`, `forward_head`, `forward_intermediates`")
def test_timm_parts_of_the_forward():
    plain, fused = twins(lambda: small("timm").double())
    x = images(dtype=torch.float64)
    for part in (
        lambda model: [model.forward_features(x)],
        lambda model: [model.forward_head(model.forward_features(x), pre_logits=True)],
        lambda model: model.forward_intermediates(x, indices=3, intermediates_only=True),
        lambda model: model.forward_intermediates(x, indices=[0, 1, 2], stop_early=True)[1],
    ):
        with fused_path(FORWARD):
            found = part(fused)
        for one, want in zip(found, part(plain), strict=True):
            torch.testing.assert_close(one, want, **CLOSE)


@works_with("timm's `get_classifier`, `reset_classifier`, `group_matcher`")
def test_timm_classifier():
    plain, fused = twins(lambda: small("timm").double())
    assert fused.get_classifier() is fused.fc
    for model in (plain, fused):
        torch.manual_seed(2)
        model.reset_classifier(7)
    assert_same_step(plain, fused, images(dtype=torch.float64))
    for model in (plain, fused):
        model.reset_classifier(0, "")
    assert_same_step(plain, fused, images(dtype=torch.float64))
    groups = [
        timm.models.group_parameters(model, model.group_matcher()) for model in (plain, fused)
    ]
    assert groups[0] == groups[1]


NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "wide_resnet50_2",
)  # fmt: skip


@works_with('`timm.create_model("fastres_resnet50")` after `fastres.interop.register_timm()`')
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_timm_registry(name):
    from fastres.interop import register_timm

    register_timm()
    register_timm()  # nothing is registered, or warned of, twice
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.1)
    torch.manual_seed(0)
    ours = timm.create_model(f"fastres_{name}", num_classes=7, in_chans=1, drop_rate=0.1)
    assert type(theirs) is timm.models.ResNet
    assert isinstance(ours, timm.models.ResNet)
    assert (ours.num_classes, ours.drop_rate, ours.conv1.in_channels) == (7, 0.1, 1)
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert {row.path for row in fastres.explain(ours).rows} == {"whole stem", "whole block"}
    assert ours.pretrained_cfg == theirs.pretrained_cfg
    assert timm.data.resolve_model_data_config(ours) == timm.data.resolve_model_data_config(theirs)
    features = timm.create_model(f"fastres_{name}", features_only=True, out_indices=(2, 4))
    assert features.feature_info.reduction() == [8, 32]
    assert whole(features) == whole(ours)


def test_timm_registry_lists_what_timm_has():
    from fastres.interop import register_timm

    register_timm()
    assert set(timm.list_models("fastres_*")) == {f"fastres_{name}" for name in NAMES}
    for name in NAMES:
        with torch.device("meta"):
            theirs, ours = (timm.create_model(one) for one in (name, f"fastres_{name}"))
        layers = [
            [str(m) for m in model.modules() if not list(m.children())] for model in (theirs, ours)
        ]
        assert layers[1] == layers[0]
        tags = timm.list_pretrained(f"{name}.*")
        assert timm.list_pretrained(f"fastres_{name}.*") == [f"fastres_{tag}" for tag in tags]
        for tag in tags:
            found = timm.get_pretrained_cfg(f"fastres_{tag}").to_dict()
            want = timm.get_pretrained_cfg(tag).to_dict()
            assert found | {"architecture": name} == want


@works_with("pretrained weights of timm's by tag: `fastres_resnet18.a1_in1k`")
def test_timm_pretrained_weights(tmp_path):
    from fastres.interop import register_timm

    register_timm()
    source = timm.create_model("resnet18").eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model(
        "fastres_resnet18.a1_in1k", pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    assert model.pretrained_cfg["tag"] == "a1_in1k"
    assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_torchvision_is_the_same_library():
    """The networks of these tests are torchvision's own, not classes of ours."""
    assert type(small()) is torchvision.models.ResNet
