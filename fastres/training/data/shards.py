"""WebDataset's shards: tar files DIR/train-*.tar and DIR/val-*.tar of KEY.jpg and KEY.cls.

They are read through an index, in the sampler's order, and not as a stream: what a step sees does
not depend on the number of workers, and a resumed run sees what the uninterrupted one does.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from fastres.training.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp")


class ShardStore:
    """The images of one split's shards. Its files must be tar without compression.

    Raises DataError naming the shard, and the member in it, that is not what it should be.
    """

    def __init__(self, root: Path, split: str) -> None:
        if not root.is_dir():
            raise DataError(f"data_dir must be a folder of shards, got {str(root)!r}")
        shards = sorted(root.glob(f"{split}-*.tar"))
        if not shards:
            raise DataError(f"no shard {split}-*.tar in {root}")
        self._images: list[tuple[Path, str, int, int]] = []  # shard, name, offset, bytes
        self._labels: list[int] = []
        for shard in shards:
            self._index(shard)
        if not self._images:
            raise DataError(f"the shards {root / split}-*.tar hold no image ({', '.join(IMAGES)})")
        self.classes: tuple[str, ...] = tuple(str(n) for n in range(max(self._labels) + 1))

    def __len__(self) -> int:
        return len(self._images)

    def label(self, index: int) -> int:
        return self._labels[index]

    def image(self, index: int) -> Any:
        from PIL import Image

        shard, name, offset, size = self._images[index]
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                return Image.open(io.BytesIO(file.read(size))).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read the image {name} of {shard}: {error}") from None

    def _index(self, shard: Path) -> None:
        images: dict[str, tuple[Path, str, int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, kind = base.partition(".")
                    key, kind = f"{folder}/{stem}", kind.lower()
                    if kind in IMAGES:
                        images[key] = (shard, member.name, member.offset_data, member.size)
                    elif kind == "cls":
                        labels[key] = _label(shard, member.name, tar.extractfile(member).read())
        except (tarfile.TarError, EOFError) as error:
            raise DataError(
                f"{shard} is truncated or no tar file without compression: {error}"
            ) from None
        except OSError as error:
            raise DataError(f"cannot read {shard}: {error.strerror}") from None
        for key, where in images.items():
            if key not in labels:
                raise DataError(f"{shard}: the image {where[1]} has no .cls beside it")
            self._images.append(where)
            self._labels.append(labels[key])


def _label(shard: Path, name: str, text: bytes) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{shard}: {name} must hold a class number from 0 on, got {text[:20]!r}")
    return label


def open_shards(folder: str) -> tuple[ShardStore, ShardStore]:
    """The stores of both splits. Raises DataError if a test label is none of the training's."""
    root = Path(folder)
    train, held_out = ShardStore(root, "train"), ShardStore(root, "val")
    highest = len(train.classes) - 1
    if len(held_out.classes) - 1 > highest:
        raise DataError(
            f"{root}: labels must be 0 to {highest} as in train, got "
            f"{len(held_out.classes) - 1} in val"
        )
    held_out.classes = train.classes
    return train, held_out
