"""The images a network is tested on, as they are on disk: uint8, nothing subtracted yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fastres.training.data.decoded import Store
from fastres.training.data.imagefolder import FolderStore
from fastres.training.data.shards import ShardStore
from fastres.training.errors import DataError


class Images(Protocol):
    """Images with their classes. `side` is that of square images that all have one size."""

    classes: Sequence[str]
    side: int | None
    description: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, int]:
        """A PIL image or a tensor uint8 [C, H, W], and its class. Raises DataError."""
        ...


class TensorImages:
    """Images in memory: uint8 [N, C, H, W] and labels int64 [N]. `classes`: names, or how many."""

    def __init__(
        self, data: str, images: Tensor, labels: Tensor, classes: Sequence[str] | int
    ) -> None:
        self._images, self._labels = images, labels
        named = not isinstance(classes, int)
        self.classes = tuple(classes) if named else tuple(map(str, range(classes)))
        self.side = images.shape[-1] if images.shape[-1] == images.shape[-2] else None
        self.description = f"{data}: {len(images)} images of {len(self.classes)} classes"

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], int(self._labels[index])


class StoredImages:
    """Images in files. `outputs[label]` is the network's output for a label of the store."""

    side = None

    def __init__(
        self, where: str, store: Store, classes: Sequence[str], outputs: Sequence[int]
    ) -> None:
        self._store, self.classes, self._outputs = store, tuple(classes), outputs
        self.description = f"{where}: {len(store)} images of {len(set(outputs))} classes"

    def __len__(self) -> int:
        return len(self._store)

    def read(self, index: int) -> tuple[Any, int]:
        return self._store.image(index), self._outputs[self._store.label(index)]


def open_folder(
    folder: str, split: str, classes: Sequence[str] | None = None, subset: bool = False
) -> StoredImages:
    """A folder per class: DIR/val/<class>/* or, where there is no DIR/val, DIR/<class>/*.

    Args:
        folder: DIR.
        split: "test" for val/, "train" for train/.
        classes: the classes' names in the order of the network's outputs; None takes the sorted
            folders of train/ where there is one, else those of the split itself.
        subset: accept classes that have no folder here.

    Raises:
        DataError: there is no such folder, a class has no images, or a folder is no class.
        UsageError: torchvision is not installed.
    """
    root = _root(Path(folder), split)
    store = FolderStore(root)
    classes = tuple(classes or _training_classes(root) or store.classes)
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in store.classes if name not in numbers]
    if unknown:
        raise DataError(
            f"{root}: the folder {unknown[0]!r} is none of the {len(classes)} classes "
            f"({len(unknown)} such folders)"
        )
    missing = sorted(set(classes) - set(store.classes))
    if missing and not subset:
        raise DataError(
            f"{root}: the class {missing[0]!r} has no folder ({len(missing)} such classes); "
            "--subset tests on the others"
        )
    return StoredImages(str(root), store, classes, [numbers[name] for name in store.classes])


def open_shards(
    folder: str, split: str, classes: Sequence[str] | None, num_classes: int
) -> StoredImages:
    """WebDataset's shards DIR/val-*.tar, or DIR/train-*.tar, whose labels are output numbers.

    Raises:
        DataError: they are missing or broken, or a label is `num_classes` or more.
    """
    name = "train" if split == "train" else "val"
    store = ShardStore(Path(folder), name)
    if len(store.classes) > num_classes:
        raise DataError(
            f"{folder}: labels must be 0 to {num_classes - 1}, the network's outputs, got "
            f"{len(store.classes) - 1} in {name}"
        )
    names = tuple(classes or map(str, range(num_classes)))
    return StoredImages(f"{folder}/{name}-*.tar", store, names, range(len(store.classes)))


def _root(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"data_dir must be a folder of class folders, got {str(folder)!r}")
    inner = folder / ("train" if split == "train" else "val")
    if inner.is_dir():
        return inner
    if split == "train" or (folder / "train").is_dir():
        raise DataError(f"no folder {inner}")
    return folder


def _training_classes(root: Path) -> list[str] | None:
    """The outputs of a network were numbered by train/'s folders, whatever val/ has."""
    train = root.with_name("train")
    if root.name != "val" or not train.is_dir():
        return None
    return sorted(path.name for path in train.iterdir() if path.is_dir())


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line. Raises DataError for doubles and empty files."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the class names in {path}: {reason}") from None
    while names and not names[-1]:
        names.pop()
    double = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if not names or double is not None or not all(names):
        what = "none" if not names else f"{double!r} twice" if double else "an empty line"
        raise DataError(f"{path} must hold one class name a line, got {what}")
    return tuple(names)
