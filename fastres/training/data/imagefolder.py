"""A folder per class, as for ImageNet: DIR/train/<class>/* and DIR/val/<class>/*."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastres.training.data.augment import draws
from fastres.training.data.sampler import Key
from fastres.training.data.source import Batch, Source
from fastres.training.errors import DataError, UsageError

# ImageNet's channel means and deviations, as torchvision's weights expect them
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_imagefolder(folder: str, image_size: int, seed: int) -> Source:
    """Training: shorter side scaled at random, random crop, flip; evaluation: centre crop.

    Shorter side from [256, 480] for a crop of 224 (section 3.4 of the paper), in proportion for
    other sizes. Raises DataError for a missing folder, a class without images, or class names that
    differ between the two.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise UsageError(
            f"data 'imagefolder' needs torchvision: pip install 'fastres[data]' ({error})"
        ) from None
    low, high = round(image_size * 256 / 224), round(image_size * 480 / 224)
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    train_transform = v2.Compose(
        [
            v2.RandomShortestSize(list(range(low, high + 1)), antialias=True),
            v2.RandomCrop(image_size),
            v2.RandomHorizontalFlip(),
            *finish,
        ]
    )
    test_transform = v2.Compose(
        [v2.Resize(low, antialias=True), v2.CenterCrop(image_size), *finish]
    )
    root = Path(folder)
    train = ImageFolderSplit(root / "train", train_transform, seed)
    held_out = ImageFolderSplit(root / "val", test_transform, seed)
    differing = sorted(set(train.classes) ^ set(held_out.classes))
    if differing:
        side = "train" if differing[0] in train.classes else "val"
        raise DataError(
            f"{root}: class {differing[0]!r} is in {side} only ({len(differing)} such classes)"
        )
    return Source(
        train=train,
        held_out=held_out,
        held_out_name="validation",
        num_classes=len(train.classes),
        description=f"{root}: {len(train)} training and {len(held_out)} validation images of "
        f"{len(train.classes)} classes, {image_size}x{image_size}",
    )


class ImageFolderSplit:
    """torchvision's ImageFolder, with the transform's random numbers tied to (epoch, index)."""

    def __init__(self, root: Path, transform: Any, seed: int) -> None:
        from torchvision.datasets import ImageFolder

        if not root.is_dir():
            raise DataError(f"no folder {root}: data_dir must hold train/ and val/")
        try:
            folder = ImageFolder(str(root))
        except FileNotFoundError as error:
            raise DataError(_name_empty_class(root) or f"{root}: {error}") from None
        self.classes: list[str] = folder.classes
        self.samples: list[tuple[str, int]] = folder.samples
        self._load = folder.loader
        self._transform, self._seed = transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        table = np.array(keys, dtype=np.int64)
        seeds = draws(self._seed, table[:, 0], table[:, 1], 1)[:, 0] >> np.uint64(1)
        images, labels = [], []
        # the transforms draw from torch's global generator: lend it to them
        with torch.random.fork_rng(devices=[]):
            for (_, index), seed in zip(keys, seeds, strict=True):
                path, label = self.samples[index]
                torch.manual_seed(int(seed))
                images.append(self._transform(self._open(path)))
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)

    def _open(self, path: str) -> Any:
        try:
            return self._load(path)
        # what Pillow raises for files cut short, of another kind, or damaged inside
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read the image {path}: {error}") from None


def _name_empty_class(root: Path) -> str | None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if not classes:
        return f"{root} holds no class folders"
    for folder in classes:
        if not any(path.suffix.lower() in IMG_EXTENSIONS for path in folder.rglob("*")):
            return f"the class folder {folder} holds no image ({', '.join(IMG_EXTENSIONS)})"
    return None
