"""`fastres.optimize` with other libraries' networks."""

from __future__ import annotations

import copy

import pytest
import torch
from interop.networks import LIBRARIES, images, small, timm, torchvision
from interop.works_with import works_with
from torch import nn

import fastres
from fastres.inference.convolution import Convolution


def trained(model: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
    return model.eval()


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def assert_optimised(model: nn.Module, x: torch.Tensor, *, left: int = 0, **options):
    """Same outputs, and no BN but `left`."""
    optimized = fastres.optimize(model, x, **options)
    assert optimized.difference.relative <= optimized.difference.tolerance
    assert count(optimized, nn.BatchNorm2d) == left
    assert count(optimized, Convolution) > 0
    return optimized


@works_with("inference: torchvision's and timm's ResNets, fused or not")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_both_libraries(library, fused):
    model = trained(small(library))
    if fused:
        fastres.fuse(model)
    kinds = [type(module) for module in model.modules()]
    optimized = assert_optimised(model, images())
    assert [type(module) for module in model.modules()] == kinds
    with torch.no_grad():
        torch.testing.assert_close(optimized(images()), model(images()), rtol=1e-4, atol=1e-4)


@works_with("inference: bfloat16 and float16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("library", LIBRARIES)
def test_half_precision(library, dtype):
    assert assert_optimised(trained(small(library)), images(), dtype=dtype)(images()).dtype == (
        torch.float32
    )


@works_with("inference: timm's variants (deep stems, average-pooled shortcuts, SE, ECA)")
@pytest.mark.parametrize(
    "options",
    [
        {"stem_type": "deep", "stem_width": 32, "avg_down": True},
        {"block_args": {"attn_layer": "se"}},
        {"block_args": {"attn_layer": "eca"}},
        {"aa_layer": timm.layers.BlurPool2d},
        {"drop_path_rate": 0.1, "drop_block_rate": 0.1},
    ],
)
def test_timm_variants(options):
    torch.manual_seed(0)
    block = timm.models.resnet.Bottleneck
    model = timm.models.ResNet(block, [1, 1, 1, 1], num_classes=10, **options)
    assert_optimised(trained(model), images())


@works_with("inference: torchvision's segmentation networks")
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_segmentation(name):
    torch.manual_seed(0)
    make = getattr(torchvision.models.segmentation, name)
    model = trained(make(weights=None, weights_backbone=None, num_classes=3, aux_loss=True))
    x = images(1, 48)
    # the pooled branch of DeepLab's head has a forward of its own
    optimized = assert_optimised(model, x, left=name.startswith("deeplab"))
    with torch.no_grad():
        expected, found = model(x), optimized(x)
    assert list(found) == list(expected)


@works_with("inference: a backbone under an FPN, with FrozenBatchNorm2d")
def test_backbone_with_fpn():
    torch.manual_seed(0)
    model = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=torchvision.ops.misc.FrozenBatchNorm2d,
    )
    optimized = assert_optimised(model.eval(), images(1))
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    assert count(model, frozen) > count(optimized, frozen) == 0


@works_with("inference: features by hooks and by `features_only`")
def test_features():
    model = trained(small("torchvision"))
    seen = []
    model.layer3.register_forward_hook(lambda module, x, out: seen.append(out))
    optimized = assert_optimised(model, images())
    seen.clear()
    with torch.no_grad():
        model(images())
    optimized(images())
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    features = timm.create_model("resnet18", features_only=True)
    # its stem is called layer by layer from a forward that is not looked into
    assert_optimised(trained(features), images(2, 64), left=1)


@works_with("inference: any `nn.Sequential` of other networks (MobileNetV2, VGG)")
@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg11_bn"])
def test_other_networks(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10)
    assert_optimised(trained(model), images(1, 64))


def test_the_amp_of_a_fused_model_is_its_dtype():
    model = fastres.fuse(copy.deepcopy(trained(small("torchvision"))))
    model.amp = torch.bfloat16
    optimized = fastres.optimize(model, images())
    assert {m.weight.dtype for m in optimized.modules() if isinstance(m, Convolution)} == {
        torch.bfloat16
    }
