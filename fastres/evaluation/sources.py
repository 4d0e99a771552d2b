"""Which images networks are tested on, and what is subtracted from them, from options and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from fastres.evaluation.images import Images, TensorImages, open_folder, open_shards
from fastres.evaluation.networks import Network, same
from fastres.training.config import TrainConfig
from fastres.training.data import open_source
from fastres.training.data.normalize import Normalize
from fastres.training.errors import UsageError

# ImageNet's channel means and deviations, which torchvision's weights were trained with
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IMAGENET_CROP = 224
FILES = ("imagefolder", "webdataset")


@dataclass(frozen=True)
class TestSet:
    """The images, the dataset they are of, and what its training subtracts (None: unknown)."""

    data: str
    images: Images
    normalize: Normalize | None


def open_test_set(
    networks: Sequence[Network],
    data: str | None,
    folder: str | None,
    split: str,
    classes: Sequence[str] | None,
    subset: bool,
) -> TestSet:
    """The images to test on; what is not given is the first checkpoint's.

    Raises:
        UsageError: nobody says what to test on, or classes and outputs differ in number.
        DataError: files or classes are missing or broken.
    """
    config = next((one.config for one in networks if one.config), {})
    if data is None:
        data = config.get("data")
    if data is None:
        raise UsageError("a state_dict says nothing of its data: give --data")
    config = config if config.get("data") == data else {}
    if classes is None:
        stored = [one.classes for one in networks if one.classes]
        known = [one for one in networks if one.classes]
        classes = same(known, "the classes", stored) if stored else None
    outputs = same(networks, "the number of outputs", [one.num_classes for one in networks])
    if data in FILES:
        folder = folder or config.get("data_dir")
        if folder is None:
            raise UsageError(f"data {data!r} needs data_dir, the folder of its files")
        if data == "webdataset":
            images: Images = open_shards(folder, split, classes, outputs)
        else:
            images = open_folder(folder, split, classes, subset)
        found = TestSet(data, images, None)
    else:
        found = _in_memory(data, folder, split, config, classes)
    if len(found.images.classes) != outputs:
        raise UsageError(
            f"{found.images.description}, but {networks[0].path} has {outputs} outputs; a class "
            "without a folder shifts the numbers of those after it: --classes names all of them"
        )
    return found


def _in_memory(
    data: str,
    folder: str | None,
    split: str,
    config: Mapping[str, Any],
    classes: Sequence[str] | None,
) -> TestSet:
    known = {one.name for one in fields(TrainConfig)}
    if config:  # the very images and the very mean of the run, whatever its seed and sizes were
        values = {key: value for key, value in config.items() if key in known}
        source = open_source(TrainConfig(**{**values, "data_dir": folder or values["data_dir"]}))
    else:
        source = open_source(TrainConfig.build(data, data_dir=folder))
    part = source.train if split == "train" else source.test or source.held_out
    names = classes or getattr(source, "classes", ()) or None
    images = TensorImages(data, part.images, part.labels, names or source.num_classes)
    return TestSet(data, images, source.normalize)


def trained_size(network: Network, test_set: TestSet) -> int:
    """Side of the images that a network was trained on, in pixels."""
    config, side = network.config, test_set.images.side
    if config.get("data") in FILES or (config and side is None):
        return config["image_size"]
    return _IMAGENET_CROP if side is None else side


def normalize_of(
    network: Network,
    test_set: TestSet,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Normalize:
    """What a network sees of an image: `mean` and `std` if given, else what is stored with it, else
    what its dataset's training subtracts; ImageNet's mean and deviation for folders of images.

    Raises:
        UsageError: the checkpoint stores none and was trained on another dataset.
    """
    if mean is not None or std is not None:
        return _channels(mean or (0.0, 0.0, 0.0), std)
    if network.normalize is not None:
        return network.normalize
    trained_on = network.config.get("data", test_set.data)
    if trained_on != test_set.data:
        raise UsageError(
            f"{network.path} stores no mean and was trained on {trained_on!r}, data is "
            f"{test_set.data!r}: give --mean, and --std if there was one"
        )
    return test_set.normalize or _channels(*_IMAGENET)


def _channels(mean: Sequence[float], std: Sequence[float] | None) -> Normalize:
    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[:, None, None]

    return Normalize(column(mean), None if std is None else column(std))
