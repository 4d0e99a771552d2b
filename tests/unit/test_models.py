"""Which networks there are: their sizes, structure, arguments and errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fastres import models
from fastres.layers import BasicBlock, Bottleneck, PadShortcut, PlainBlock


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return models.create(name, **options)


# the exact columns of the paper's table: mult-adds in 10^9, to three places
IMAGENET = [
    ("plain18", {}, 1.795, 11_515_688),
    ("resnet18", {"shortcut": "A"}, 1.795, 11_515_688),
    ("resnet18", {"shortcut": "B"}, 1.814, 11_689_512),
    ("resnet18", {"variant": "v1"}, 1.814, 11_689_512),
    ("plain34", {}, 3.644, 21_623_848),
    ("resnet34", {"shortcut": "A"}, 3.644, 21_623_848),
    ("resnet34", {"shortcut": "B"}, 3.664, 21_797_672),
    ("resnet34", {"shortcut": "C"}, 3.831, 22_716_840),
    ("resnet50", {"variant": "v1"}, 3.858, 25_557_032),
    ("resnet50", {}, 4.089, 25_557_032),
    ("resnet101", {"variant": "v1"}, 7.570, 44_549_160),
    ("resnet101", {}, 7.801, 44_549_160),
    ("resnet152", {"variant": "v1"}, 11.282, 60_192_808),
    ("resnet152", {}, 11.514, 60_192_808),
]
CIFAR = [
    (20, 269_722),
    (32, 464_154),
    (44, 658_586),
    (56, 853_018),
    (110, 1_727_962),
    (1202, 19_421_274),
]


@pytest.mark.parametrize(("name", "options", "giga", "parameters"), IMAGENET)
def test_imagenet_counts(name, options, giga, parameters):
    counted = models.count(on_meta(name, **options), 224)
    assert counted.parameters == parameters
    assert round(counted.multiply_adds / 1e9, 3) == giga


@pytest.mark.parametrize(("depth", "parameters"), CIFAR)
def test_cifar_counts(depth, parameters):
    assert models.count(on_meta(f"resnet{depth}"), 32).parameters == parameters
    if depth != 1202:
        plain = models.count(on_meta(f"plain{depth}"), 32)
        assert plain == models.count(on_meta(f"resnet{depth}"), 32)


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_depth_is_the_number_of_layers(depth):
    model = on_meta(f"resnet{depth}")
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == depth


def test_count_leaves_the_model_alone_and_sees_through_fusion():
    model = models.resnet18(fused=True, num_classes=7)
    before = copy.deepcopy(model.state_dict())
    counted = models.count(model, (96, 64))
    assert counted == models.count(on_meta("resnet18", num_classes=7), (96, 64))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    with pytest.raises(ValueError, match="model must contain a convolution, got Linear"):
        models.count(nn.Linear(3, 4), 8)


def test_count_takes_channels_and_dtype_from_the_first_convolution():
    model = models.resnet20(in_channels=1).half()
    assert models.count(model, 28).multiply_adds > 0


@pytest.mark.parametrize(("variant", "strides"), [("v1", (2, 1)), ("v1.5", (1, 2))])
def test_variant_places_the_stride(variant, strides):
    model = on_meta("resnet50", variant=variant)
    for stage in (model.layer2, model.layer3, model.layer4):
        first, second, *_ = stage
        assert (first.conv1.stride[0], first.conv2.stride[0]) == strides
        assert first.downsample[0].stride == (2, 2)
        assert (second.conv1.stride, second.conv2.stride) == ((1, 1), (1, 1))
    assert model.layer1[0].conv1.stride == model.layer1[0].conv2.stride == (1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_shortcut_options(name):
    a, b, c = (on_meta(name, shortcut=option) for option in "ABC")
    for model, kind, others in ((a, PadShortcut, type(None)), (b, nn.Sequential, type(None))):
        for index in range(1, 5):
            first, *rest = getattr(model, f"layer{index}")
            changes = index > 1 or name == "resnet50"
            assert type(first.downsample) is (kind if changes else type(None))
            assert all(type(block.downsample) is others for block in rest)
    blocks = [m for m in c.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    assert all(isinstance(block.downsample, nn.Sequential) for block in blocks)
    assert a.layer2[0].downsample.stride == 2
    assert not any("downsample" in key for key in a.state_dict())


@pytest.mark.parametrize("name", ["plain18", "plain20"])
def test_plain_networks_have_no_shortcut(name):
    model = models.create(name)
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    assert blocks
    assert all(type(block) is PlainBlock and block.downsample is None for block in blocks)
    # a block whose convolutions are zero gives zero: nothing goes around them
    block = blocks[0]
    nn.init.zeros_(block.conv1.weight)
    nn.init.zeros_(block.conv2.weight)
    out = block(torch.randn(2, block.conv1.in_channels, 8, 8))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("option", "ABC")
def test_cifar_shortcuts(option):
    model = models.resnet20(shortcut=option).eval()
    expected = {"A": 269_722, "B": 272_474, "C": 283_962}[option]
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_initialisation_is_he():
    torch.manual_seed(0)
    model = models.resnet56()
    weight = model.layer3[4].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    assert torch.equal(model.bn1.weight, torch.ones(16))
    zeroed = models.resnet20(zero_init_residual=True)
    assert not zeroed.layer2[0].bn2.weight.any()
    assert zeroed.layer2[0].bn1.weight.all()


def test_registry():
    names = models.names()
    assert names[:3] == ["resnet18", "resnet34", "resnet50"]
    assert {"plain34", "resnet1202", "plain110", "wide_resnet101_2"} <= set(names)
    assert len(set(names)) == len(names) == 23
    model = models.create("resnet20", num_classes=4, in_channels=1)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"name must be one of .*resnet50.*, got 'resnet5O'"):
        models.create("resnet5O")
    with pytest.raises(ValueError, match=r"name must be one of resnet18, .*plain110, got 'vgg'"):
        models.create("vgg")


@pytest.mark.parametrize("name", models.names())
def test_every_network_is_reachable_by_its_name(name):
    assert getattr(models, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet18", {"shortcut": "D"}, ValueError, "shortcut must be one of .* got 'D'"),
        ("resnet18", {"shortcut": None}, ValueError, "shortcut must be one of .* got None"),
        ("resnet20", {"shortcut": "b"}, ValueError, "shortcut must be one of .* got 'b'"),
        ("plain18", {"shortcut": "A"}, ValueError, "shortcut must be None .* got 'A'"),
        ("plain20", {"shortcut": "A"}, ValueError, "shortcut must be None .* got 'A'"),
        ("plain20", {"zero_init_residual": True}, ValueError, "zero_init_residual must be False"),
        (
            "resnet50",
            {"variant": "v2"},
            ValueError,
            "variant must be one of 'v1', 'v1.5', got 'v2'",
        ),
        ("resnet18", {"variant": 1}, ValueError, "variant must be one of 'v1', 'v1.5', got 1"),
        ("resnet18", {"num_classes": 0}, ValueError, "num_classes must be a positive .* got 0"),
        ("resnet20", {"num_classes": 2.5}, ValueError, "num_classes must be a positive .* got 2.5"),
        ("resnet20", {"in_channels": 0}, ValueError, "in_channels must be a positive .* got 0"),
        ("resnet50", {"groups": 0}, ValueError, "groups must be a positive integer, got 0"),
        ("resnet50", {"width_per_group": -1}, ValueError, "width_per_group must be .* got -1"),
        ("resnet18", {"groups": 2}, ValueError, "only supports groups=1 and base_width=64"),
        ("resnet18", {"width_per_group": 128}, ValueError, "only supports groups=1 and base_wid"),
        (
            "resnet50",
            {"replace_stride_with_dilation": [True]},
            ValueError,
            r"replace_stride_with_dilation should be None or a 3-element tuple, got \[True\]",
        ),
        (
            "resnet34",
            {"replace_stride_with_dilation": [False, True, True]},
            NotImplementedError,
            "Dilation > 1 not supported in BasicBlock",
        ),
        ("resnext50_32x4d", {"groups": 2}, ValueError, "'groups' expected value 32 but got 2"),
        ("resnet50", {"colour": "red"}, TypeError, "colour"),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        on_meta(name, **options)


@pytest.mark.parametrize("depth", [19, 2, True, 20.0])
def test_bad_depth(depth):
    with pytest.raises(ValueError, match=r"depth must be 6n\+2"):
        models.CifarResNet(depth)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_bad_images(name, fused):
    model = models.create(name, fused=fused)
    with pytest.raises(
        TypeError, match=r"images must be a floating-point tensor, got torch\.uint8"
    ):
        model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got \[2, 1, 32, 32\]"):
        model(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got \[3, 32, 32\]"):
        model(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("fused", [False, True])
def test_one_value_per_channel_in_training(fused):
    model = models.create("resnet18", fused=fused)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        model(torch.randn(1, 3, 32, 32))
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "plain20"])
def test_deepcopy_and_pickle(name, fused):
    model = models.create(name, fused=fused, num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    model(x)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, fused):
    torch.manual_seed(0)
    model = models.resnet20(fused=fused).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        converted = model.half() if dtype == torch.float16 else model.to(dtype)
        out = converted(x.to(dtype))
    assert out.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
