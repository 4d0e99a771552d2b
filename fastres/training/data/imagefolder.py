"""A folder per class, as for ImageNet: DIR/train/<class>/* and DIR/val/<class>/*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastres.training.errors import DataError, UsageError


class FolderStore:
    """torchvision's ImageFolder, with errors that name what is wrong.

    Raises DataError for a missing folder and for a class without images, UsageError without
    torchvision.
    """

    def __init__(self, root: Path) -> None:
        try:
            from torchvision.datasets import ImageFolder
        except ImportError as error:
            raise UsageError(
                f"data 'imagefolder' needs torchvision: pip install 'fastres[data]' ({error})"
            ) from None
        if not root.is_dir():
            raise DataError(f"no folder {root}: data_dir must hold train/ and val/")
        try:
            folder = ImageFolder(str(root))
        except FileNotFoundError as error:
            raise DataError(_name_empty_class(root) or f"{root}: {error}") from None
        except OSError as error:
            raise DataError(f"cannot read the folder {root}: {error.strerror}") from None
        self.classes: tuple[str, ...] = tuple(folder.classes)
        self.samples: list[tuple[str, int]] = folder.samples
        self._load = folder.loader

    def __len__(self) -> int:
        return len(self.samples)

    def label(self, index: int) -> int:
        return self.samples[index][1]

    def image(self, index: int) -> Any:
        path = self.samples[index][0]
        try:
            return self._load(path)
        # what Pillow raises for files cut short, of another kind, or damaged inside
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read the image {path}: {error}") from None


def open_folders(folder: str) -> tuple[FolderStore, FolderStore]:
    """The stores of DIR/train and DIR/val. Raises DataError for class names that differ."""
    root = Path(folder)
    train, held_out = FolderStore(root / "train"), FolderStore(root / "val")
    differing = sorted(set(train.classes) ^ set(held_out.classes))
    if differing:
        side = "train" if differing[0] in train.classes else "val"
        raise DataError(
            f"{root}: class {differing[0]!r} is in {side} only ({len(differing)} such classes)"
        )
    return train, held_out


def _name_empty_class(root: Path) -> str | None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if not classes:
        return f"{root} holds no class folders"
    for folder in classes:
        if not any(path.suffix.lower() in IMG_EXTENSIONS for path in folder.rglob("*")):
            return f"the class folder {folder} holds no image ({', '.join(IMG_EXTENSIONS)})"
    return None
