"""Datasets by name."""

from __future__ import annotations

from fastres.training.config import TrainConfig
from fastres.training.data.augment import CropAndFlip
from fastres.training.data.source import Source
from fastres.training.errors import UsageError


def open_source(config: TrainConfig) -> Source:
    """Opens the run's dataset. Raises UsageError or DataError naming what is missing or broken."""
    if config.data in ("cifar10", "imagefolder", "webdataset") and config.data_dir is None:
        raise UsageError(f"data {config.data!r} needs data_dir, the folder of its files")
    if config.data == "digits":
        from fastres.training.data.digits import open_digits

        return open_digits(config.seed)
    if config.data == "cifar10":
        from fastres.training.data.cifar import open_cifar10

        crop = CropAndFlip(config.padding, config.flip)
        return open_cifar10(config.data_dir, config.validation, config.seed, crop, config.mean)
    if config.data in ("imagefolder", "webdataset"):
        from fastres.training.data.files import open_files

        return open_files(config)
    if config.data == "procedural":
        from fastres.training.data.procedural import open_procedural

        return open_procedural(config.num_images, config.data_seed, config.seed)
    from fastres.training.data.synthetic import open_synthetic

    return open_synthetic(config.num_images, config.image_size, config.seed)
