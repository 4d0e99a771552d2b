"""Crops, flips, mean and colours against the same written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastres.training.data.augment import CropAndFlip, draws
from fastres.training.data.color import (
    ALEXNET_VALUES,
    ALEXNET_VECTORS,
    WORDS,
    ColorPCA,
    normals,
    principal_components,
)  # fmt: skip
from fastres.training.data.decoded import DecodedSplit
from fastres.training.data.normalize import Normalize, mean_of
from fastres.training.data.source import ImageTensors, Raw
from fastres.training.errors import UsageError


def _words(count, each, seed=0):
    return draws(seed, np.full(count, 2), np.arange(count), each)


def _images(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True)])
def test_batches_are_the_centred_images_padded_cut_and_mirrored(padding, flip):
    images, labels = _images(40, 8), torch.arange(40) % 10
    mean = mean_of(images, "pixel").mean
    split = ImageTensors(images, labels, mean, CropAndFlip(padding, flip), seed=5)
    keys = [(2, index) for index in range(40)]
    out, out_labels = split.__getitems__(keys)
    words = _words(40, 3, seed=5)
    for index in range(40):
        centred = images[index].numpy().astype(np.float32) / np.float32(255) - mean.numpy()
        padded = np.pad(centred, ((0, 0), (padding, padding), (padding, padding)))
        top, left = (int(words[index, i]) % (2 * padding + 1) for i in (0, 1))
        crop = padded[:, top : top + 8, left : left + 8]
        if flip and int(words[index, 2]) >= 2**63:
            crop = crop[:, :, ::-1]
        assert np.array_equal(out[index].numpy(), crop)
    assert torch.equal(out_labels, labels)


def test_a_batch_stays_bytes_until_it_is_finished():
    images = _images(10, 8)
    mean = mean_of(images, "pixel").mean
    split = ImageTensors(images, torch.zeros(10).long(), mean, CropAndFlip(2, True))
    raw = split.fetch([(0, 3), (0, 4)])
    assert raw.images.dtype == torch.uint8
    finished = split.finisher(torch.device("cpu"), torch.channels_last)(raw)
    assert finished.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(finished, split.__getitems__([(0, 3), (0, 4)])[0])
    assert raw.images.dtype == torch.uint8, "the bytes are not touched"


def test_channel_mean():
    images = _images(20, 6)
    normalize = mean_of(images, "channel")
    expected = images.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(normalize.mean.flatten(), expected.float())
    split = ImageTensors(images, torch.zeros(20).long(), normalize.mean, CropAndFlip(2, True))
    batch, _ = split.__getitems__([(0, index) for index in range(20)])
    assert batch.shape == (20, 3, 6, 6)
    with pytest.raises(UsageError, match="mean must be pixel or channel, got 'all'"):
        mean_of(images, "all")


def test_what_is_done_to_images_goes_through_a_checkpoint_and_is_compared():
    mean, std = torch.rand(3, 4, 4), torch.ones(3, 1, 1)
    one = Normalize(mean)
    assert Normalize.from_dict(one.as_dict()).same_as(one)
    assert not one.same_as(Normalize(mean + 1))
    assert not one.same_as(Normalize(mean, std))
    assert Normalize(mean, std).same_as(Normalize(mean.clone(), std.clone()))


def test_normals_are_normal():
    words = _words(5000, 4)
    numbers = normals(words)
    assert abs(numbers.mean()) < 0.03
    assert abs(numbers.std() - 1) < 0.03
    assert abs(np.mean(np.abs(numbers) < 1) - 0.6827) < 0.01
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.05
    extremes = np.array([[0, 0, 2**64 - 1, 2**64 - 1]], dtype=np.uint64)
    assert np.isfinite(normals(extremes)).all()


def test_colour_shifts_are_alexnets_formula():
    words = _words(50, WORDS)
    shifts = ColorPCA.alexnet(0.1).shifts(words)
    alpha = 0.1 * normals(words)
    for number in range(50):
        expected = np.zeros(3)
        for component in range(3):
            vector = np.array([row[component] for row in ALEXNET_VECTORS])
            expected += vector * alpha[number, component] * ALEXNET_VALUES[component]
        np.testing.assert_allclose(shifts[number].numpy(), expected, rtol=1e-5, atol=1e-8)
    assert not ColorPCA.alexnet(0.0).shifts(words).any()
    # the first axis is grey: nearly the same for the three colours
    assert np.abs(np.array(ALEXNET_VECTORS).T @ np.array(ALEXNET_VECTORS) - np.eye(3)).max() < 1e-3


def test_principal_components_of_a_covariance():
    generator = np.random.default_rng(0)
    data = generator.normal(size=(1000, 3)) @ generator.normal(size=(3, 3))
    covariance = np.cov(data.T)
    values, vectors = principal_components(covariance)
    assert values[0] >= values[1] >= values[2] >= 0
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, atol=1e-12)
    again, same = principal_components(covariance)
    assert np.array_equal(values, again)
    assert np.array_equal(vectors, same)


class _Store:
    """Twelve plain images of one colour each."""

    classes = ("a", "b")

    def __len__(self):
        return 12

    def label(self, index):
        return index % 2

    def image(self, index):
        return torch.full((3, 4, 4), 20 * index, dtype=torch.uint8)


def test_colours_are_shifted_before_the_division_and_tied_to_epoch_and_index():
    normalize = Normalize(torch.full((3, 1, 1), 0.25), torch.full((3, 1, 1), 0.5))
    color = ColorPCA.alexnet(0.1)
    split = DecodedSplit(_Store(), lambda image: image, 7, normalize, color)
    keys = [(3, index) for index in range(12)]
    images, labels = split.__getitems__(keys)
    words = draws(7, np.full(12, 3), np.arange(12), 1 + WORDS)[:, 1:]
    shifts = color.shifts(words).numpy()
    for index in range(12):
        expected = (20 * index / 255 - 0.25 + shifts[index]) / 0.5
        got = images[index].numpy()
        np.testing.assert_allclose(got, expected[:, None, None] * np.ones((3, 4, 4)), atol=1e-6)
    assert labels.tolist() == [0, 1] * 6
    alone = torch.cat([split.__getitems__([key])[0] for key in keys])
    assert torch.equal(alone, images)
    later, _ = split.__getitems__([(4, index) for index in range(12)])
    assert not torch.equal(later, images)
    plain = DecodedSplit(_Store(), lambda image: image, 7, normalize)
    assert plain.fetch(keys) is not None
    assert isinstance(plain.fetch(keys), Raw)
    assert plain.fetch(keys).draws == {}
