"""CIFAR-10 from its original files, binary or pickled; every file is checked before it is used."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastres.training.data.augment import CropAndFlip
from fastres.training.data.normalize import mean_of
from fastres.training.data.source import ImageTensors, Source, split_indices
from fastres.training.errors import DataError

RECORDS = 10_000  # images in each of the six files
_PIXELS = 3 * 32 * 32
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")

Records = tuple[np.ndarray, np.ndarray]  # images uint8 [n, 3, 32, 32], labels int64 [n]


def open_cifar10(
    folder: str,
    validation: int,
    seed: int,
    augment: CropAndFlip = CropAndFlip(padding=4, flip=True),  # noqa: B008 (it is frozen)
    mean: str = "pixel",
) -> Source:
    """CIFAR-10 with `validation` of its 50,000 training images held out (45k/5k in the paper).

    With validation=0 all are trained on, and the test set is evaluated after each epoch. `mean` is
    "pixel" or "channel", of the images trained on. Raises DataError naming the file that is
    missing, truncated or not CIFAR-10.
    """
    home, suffix = _find(Path(folder))
    read = read_binary if suffix else read_pickle
    parts = [read(home / (name + suffix)) for name in _TRAIN]
    images = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    labels = torch.from_numpy(np.concatenate([part[1] for part in parts]))
    test_images, test_labels = (torch.from_numpy(a) for a in read(home / ("test_batch" + suffix)))
    if not 0 <= validation <= len(images) - 2:
        raise DataError(f"validation must be 0 to {len(images) - 2} images, got {validation}")
    kept, out = split_indices(len(images), validation, seed)
    mean = mean_of(images[kept], mean).mean
    test = ImageTensors(test_images, test_labels, mean)
    held_out = ImageTensors(images[out], labels[out], mean) if validation else test
    return Source(
        train=ImageTensors(images[kept], labels[kept], mean, augment, seed),
        held_out=held_out,
        held_out_name="validation" if validation else "test",
        test=test if validation else None,
        num_classes=len(CLASSES),
        classes=CLASSES,
        description=f"CIFAR-10: {len(kept)} training, {len(out)} validation and "
        f"{len(test)} test images",
    )


def _find(folder: Path) -> tuple[Path, str]:
    if not folder.is_dir():
        raise DataError(f"data_dir must be a folder with CIFAR-10's files, got {str(folder)!r}")
    for inner in _FOLDERS:
        for suffix in (".bin", ""):
            if (folder / inner / (_TRAIN[0] + suffix)).is_file():
                return folder / inner, suffix
    archives = sorted(path.name for path in folder.glob("cifar-10-*.tar.gz"))
    hint = f"; unpack {archives[0]} first" if archives else ""
    raise DataError(f"no data_batch_1.bin or data_batch_1 in {folder} or its cifar-10 folder{hint}")


def read_binary(path: Path) -> Records:
    """One file of the binary version: RECORDS records of a label byte and 3072 pixel bytes."""
    raw = _read(path)
    expected = RECORDS * (_PIXELS + 1)
    if len(raw) != expected:
        word = "truncated" if len(raw) < expected else "not a CIFAR-10 file"
        raise DataError(f"{path} is {word}: it holds {len(raw)} bytes, expected {expected}")
    table = np.frombuffer(raw, dtype=np.uint8).reshape(RECORDS, _PIXELS + 1)
    return _check(path, table[:, 1:], table[:, 0])


def read_pickle(path: Path) -> Records:
    """One file of the Python version: a pickled dict with b"data" and b"labels"."""
    _read(path)  # reports a missing or unreadable file by name
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} is truncated or not a CIFAR-10 pickle: {error}") from None
    # a damaged pickle can raise almost anything from the classes it rebuilds
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path} is truncated or not a CIFAR-10 pickle: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(content, dict) or not {b"data", b"labels"} <= content.keys():
        raise DataError(f"{path} is not a CIFAR-10 pickle: no b'data' and b'labels' in it")
    return _check(path, content[b"data"], content[b"labels"])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _check(path: Path, pixels: Any, labels: Any) -> Records:
    shape = getattr(pixels, "shape", None)
    if shape != (RECORDS, _PIXELS) or pixels.dtype != np.uint8:
        kind = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {shape}"
        raise DataError(f"{path}: pixels must be uint8 ({RECORDS}, {_PIXELS}), got {kind}")
    try:
        labels = np.asarray(labels, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{path}: labels must be integers") from None
    if labels.shape != (RECORDS,):
        raise DataError(f"{path}: expected {RECORDS} labels, got shape {labels.shape}")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(wrong):
        raise DataError(
            f"{path}: labels must be 0 to {len(CLASSES) - 1}, got {labels[wrong[0]]} "
            f"in record {wrong[0]} ({len(wrong)} such records)"
        )
    return np.array(pixels).reshape(RECORDS, 3, 32, 32), labels


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1, as in the original files
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes in protocol 2
}


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values; a file that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
