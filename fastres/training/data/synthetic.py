"""Images made from a seed: one low-frequency pattern per class plus noise. For tests and timing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastres.training.data.augment import CropAndFlip
from fastres.training.data.source import ImageTensors, Source, pixel_mean

_CLASSES = 10


def open_synthetic(num_images: int, image_size: int, seed: int) -> Source:
    """`num_images` to train on and a quarter of that, at least 10, to test on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(_CLASSES, 3, 4, 4, generator=generator)
    patterns = F.interpolate(coarse, size=(image_size, image_size), mode="bilinear")

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % _CLASSES
        noise = torch.randn(count, 3, image_size, image_size, generator=generator)
        images = (patterns[labels] + 0.3 * noise).clamp_(0, 1).mul_(255).to(torch.uint8)
        return images, labels

    images, labels = draw(num_images)
    test_images, test_labels = draw(max(10, num_images // 4))
    mean = pixel_mean(images)
    crop = CropAndFlip(padding=max(1, image_size // 8), flip=True)
    return Source(
        train=ImageTensors(images, labels, mean, crop, seed),
        held_out=ImageTensors(test_images, test_labels, mean),
        held_out_name="test",
        num_classes=_CLASSES,
        description=f"synthetic: {num_images} training and {len(test_labels)} test images, "
        f"{image_size}x{image_size}",
    )
