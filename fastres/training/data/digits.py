"""scikit-learn's handwritten digits, resized to 32x32: real images that need no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastres.training.data.augment import CropAndFlip
from fastres.training.data.source import ImageTensors, Source, pixel_mean
from fastres.training.errors import UsageError

_TEST_IMAGES = 360
_SPLIT_SEED = 0  # the split is part of the dataset: the run's seed does not move it


def open_digits(seed: int) -> Source:
    """1797 images 8x8, values 0..16, in a stratified split of 1437 to train and 360 to test.

    Bilinearly resized, three equal channels; padded crops but no flip, which makes other glyphs.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UsageError(
            f"data 'digits' needs scikit-learn: pip install 'fastres[demo]' ({error})"
        ) from None
    small, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(small).float().reshape(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    images = images.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(labels).long()
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        test_size=_TEST_IMAGES,
        stratify=labels.numpy(),
        random_state=_SPLIT_SEED,
    )
    mean = pixel_mean(images[train])
    crop = CropAndFlip(padding=4, flip=False)
    return Source(
        train=ImageTensors(images[train], labels[train], mean, crop, seed),
        held_out=ImageTensors(images[test], labels[test], mean),
        held_out_name="test",
        num_classes=10,
        description=f"digits: {len(train)} training and {len(test)} test images, 32x32",
    )
