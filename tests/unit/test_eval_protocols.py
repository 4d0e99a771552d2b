"""Test protocols: which views they make, and that whole images and crops agree at one size."""

from __future__ import annotations

import copy

import pytest
import torch
from evaluation_runs import network
from torch.testing import assert_close

from fastres import models
from fastres.evaluation import protocols
from fastres.evaluation.scores import score_map
from fastres.training.errors import UsageError

Image = pytest.importorskip("PIL.Image")
v2 = pytest.importorskip("torchvision.transforms.v2")


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def pil(image: torch.Tensor):
    return v2.functional.to_pil_image(image)


@pytest.mark.parametrize("as_pil", [False, True])
def test_center_is_torchvisions_resize_and_crop(as_pil):
    image = pil(picture(300, 401)) if as_pil else picture(300, 401)
    (view,) = protocols.make("center", crop=224).views(image)
    expected = v2.CenterCrop(224)(v2.Resize(256, antialias=True)(image))
    assert torch.equal(view, v2.functional.pil_to_tensor(expected) if as_pil else expected)
    assert view.dtype == torch.uint8


def test_ten_crop_is_torchvisions():
    image = picture(41, 37)
    views = protocols.make("ten-crop", crop=24, size=37).views(image)
    assert len(views) == 10
    for view, expected in zip(views, v2.TenCrop(24)(image), strict=True):
        assert torch.equal(view, expected)
    # corners in the order of the paper's list, then the centre, then the mirror images
    assert torch.equal(views[0], image[:, :24, :24])
    assert torch.equal(views[3], image[:, -24:, -24:])
    assert torch.equal(views[5], image.flip(2)[:, :24, :24])


@pytest.mark.parametrize(("height", "width"), [(60, 45), (45, 60), (45, 45)])
def test_whole_images_keep_their_proportions(height, width):
    (view,) = protocols.make("fully-conv", crop=28).views(picture(height, width))
    assert tuple(view.shape[1:]) == tuple(32 * side // 45 for side in (height, width))


def test_multi_scale_takes_the_papers_sizes_in_proportion_to_the_crop():
    assert protocols.make("multi-scale", crop=224).sizes == (224, 256, 384, 480, 640)
    protocol = protocols.make("multi-scale", crop=28)
    assert protocol.sizes == (28, 32, 48, 60, 80)
    views = protocol.views(picture(40, 50))
    assert [tuple(view.shape[1:]) for view in views] == [
        (28, 35), (32, 40), (48, 60), (60, 75), (80, 100),
    ]  # fmt: skip
    assert protocols.make("multi-scale", crop=28, sizes=(30, 20), flip=True).count == 4


def test_images_of_the_training_size_stay_as_they_are():
    image = picture(32, 32)
    for name in ("center", "fully-conv"):
        (view,) = protocols.make(name, crop=32, native=True).views(image)
        assert torch.equal(view, image)
    # corners of an image of that size would all be the image: it is scaled as 256 is to 224
    assert protocols.make("ten-crop", crop=32, native=True).sizes == (37,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "five-crop", "crop": 8}, "protocol must be one of center, ten-crop"),
        ({"name": "center", "crop": 0}, "crop must be at least 1, got 0"),
        ({"name": "center", "crop": 8, "size": 7}, "size must be at least the crop, 8, got 7"),
        ({"name": "fully-conv", "crop": 8, "size": 0}, "size must be at least 1, got 0"),
        ({"name": "center", "crop": 8, "sizes": (8,)}, "sizes are for the protocol 'multi-scale'"),
        ({"name": "multi-scale", "crop": 8, "size": 8}, "size is not for the protocol"),
        ({"name": "multi-scale", "crop": 8, "sizes": (8, 8)}, "sizes must be different numbers"),
        ({"name": "multi-scale", "crop": 8, "sizes": (0, 8)}, "sizes must be different numbers"),
        ({"name": "ten-crop", "crop": 8, "flip": True}, "flip is part of the protocol"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        protocols.make(**arguments)


# fully convolutional


def test_at_the_training_size_whole_image_and_crop_are_one_image():
    """So both are the same numbers, bit for bit: nothing is left to compare but the pixels."""
    image = picture(224, 224)
    (whole,) = protocols.make("fully-conv", crop=224, size=224).views(image)
    (crop,) = protocols.make("center", crop=224, size=224).views(image)
    assert torch.equal(whole, crop)
    assert torch.equal(whole, image)


@pytest.mark.parametrize("size", [(224, 224), (256, 341), (200, 96)])
def test_the_mean_of_the_class_scores_is_the_networks_output(size):
    """fc as a 1x1 convolution and then the mean over the map, at 224 over one map of 7x7."""
    torch.manual_seed(0)
    model = models.resnet18(num_classes=7).double().eval()
    model.fc.bias.data.normal_()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        scores = score_map(model, images)
        assert tuple(scores.shape) == (1, 7, *(-(-side // 32) for side in size))
        assert_close(scores.mean((2, 3)), model(images), rtol=1e-12, atol=1e-12)


def test_the_two_orders_differ_by_rounding_only_in_single_precision():
    """A sum of products is not a product of sums in floating point: a few units in the last place,
    far below what separates two classes. With whole numbers and a power of two it is none."""
    model = network(classes=9)
    images = torch.randn(2, 3, 56, 72)
    with torch.no_grad():
        pooled, mapped = model(images), score_map(model, images).mean((2, 3))
    assert_close(mapped, pooled, rtol=1e-5, atol=1e-5)

    exact = copy.deepcopy(model)
    exact.avgpool.register_forward_pre_hook(lambda _, given: given[0].mul(8).round())
    for values in exact.fc.parameters():
        values.data.mul_(8).round_()
    images = torch.randn(2, 3, 32, 64)  # a map of 8x16
    with torch.no_grad():
        assert torch.equal(score_map(exact, images).mean((2, 3)), exact(images))


def test_score_map_of_torchvisions_and_of_other_networks():
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.resnet18(num_classes=4).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_close(score_map(theirs, images).mean((2, 3)), theirs(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="model must have an avgpool and a linear fc, got Seq"):
        score_map(torch.nn.Sequential(), images)
