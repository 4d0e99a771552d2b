"""Sources of images in files: a folder per class, or WebDataset's shards."""

from __future__ import annotations

from pathlib import Path

import torch

from fastres.training.config import TrainConfig
from fastres.training.data.color import ColorPCA
from fastres.training.data.decoded import DecodedSplit, Store
from fastres.training.data.normalize import Normalize
from fastres.training.data.source import Source
from fastres.training.data.statistics import FILE, Statistics
from fastres.training.data.views import Geometry
from fastres.training.errors import DataError

# ImageNet's channel means and deviations, as torchvision's weights expect them
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_files(config: TrainConfig) -> Source:
    """Training: random crop and flip, colours if wanted; evaluation: the centre crop.

    Raises DataError for what is missing or broken, UsageError without torchvision.
    """
    geometry = geometry_of(config)
    training, testing = geometry.training(), geometry.testing()
    train, held_out = open_stores(config)
    statistics = _statistics(config)
    if config.mean == "pixel":
        normalize = Normalize(statistics.mean)
    else:
        normalize = Normalize(_column(_MEAN), _column(_STD))
    color = None
    if config.color == "alexnet":
        color = ColorPCA.alexnet(config.color_std)
    elif config.color == "data":
        values, vectors = statistics.values.numpy(), statistics.vectors.numpy()
        color = ColorPCA(values, vectors, config.color_std)
    seed, skip = config.seed, config.skip_broken
    size = config.image_size
    return Source(
        train=DecodedSplit(train, training, seed, normalize, color, skip, training=True),
        held_out=DecodedSplit(held_out, testing, seed, normalize, skip_broken=skip),
        held_out_name="validation",
        num_classes=len(train.classes),
        description=f"{config.data_dir}: {len(train)} training and {len(held_out)} validation "
        f"images of {len(train.classes)} classes, {size}x{size}",
        normalize=normalize,
        classes=train.classes,
    )


def open_stores(config: TrainConfig) -> tuple[Store, Store]:
    """Where the training and the validation images lie."""
    if config.data == "webdataset":
        from fastres.training.data.shards import open_shards

        return open_shards(config.data_dir)
    from fastres.training.data.imagefolder import open_folders

    return open_folders(config.data_dir)


def geometry_of(config: TrainConfig) -> Geometry:
    """How a run cuts its crops."""
    sides = tuple(config.shorter_side)
    return Geometry(config.image_size, sides, config.crop, config.flip)


def statistics_path(config: TrainConfig) -> Path:
    """The file of `fastres data mean` that a run looks for."""
    return Path(config.statistics or Path(config.data_dir) / FILE)


def _statistics(config: TrainConfig) -> Statistics | None:
    if config.mean != "pixel" and config.color != "data":
        return None
    path = statistics_path(config)
    if not path.exists():
        wanted = "the per-pixel mean" if config.mean == "pixel" else "the data's colours"
        raise DataError(
            f"no file {path} with {wanted}: make it with `fastres data mean --data {config.data} "
            f"--data-dir {config.data_dir} --image-size {config.image_size}`, or go on with "
            "--mean channel and without --color data"
        )
    statistics = Statistics.load(path)
    if config.mean == "pixel" and statistics.image_size != config.image_size:
        raise DataError(
            f"{path} holds a mean of {statistics.image_size}x{statistics.image_size} pixels, "
            f"image_size is {config.image_size}: make it anew with `fastres data mean`"
        )
    return statistics


def _column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
