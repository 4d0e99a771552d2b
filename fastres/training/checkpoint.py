"""Checkpoint files: written whole or not at all, read without running foreign code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastres.training.errors import CheckpointError, TrainingError

FORMAT = "fastres-checkpoint"
VERSION = 1
_KEYS = (
    "model", "optimizer", "schedule", "scaler", "progress", "rng", "config", "logs",
)  # fmt: skip
_NAMED_KEYS = 3  # how many differing keys an error names


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` to `path` so that after a kill at any moment the old or the new file is there.

    Temporary file in the same folder, fsync, rename, fsync of the folder. Raises TrainingError
    when the disk is full or cannot be written; the file that was at `path` is then unchanged.
    """
    buffer = io.BytesIO()  # torch.save straight to a full disk fails without saying why
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a folder that is gone or may not be written
            temporary.unlink(missing_ok=True)
        kept = "; the last good one is kept" if os.path.exists(path) else ""
        raise TrainingError(f"cannot write the checkpoint {path}: {error.strerror}{kept}") from None


def temporary_of(path: Path) -> Path:
    """The file that `save` writes before it takes the place of `path`; a kill may leave it."""
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Raises CheckpointError if it is missing, cut, damaged (its check sums differ) or foreign.
    """
    try:
        with open(path, "rb") as file:
            raw = io.BytesIO(file.read())
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    try:
        state = torch.load(raw, map_location="cpu", weights_only=True)
        damaged = _damaged_part(raw)
    except Exception as error:  # a damaged archive makes torch raise nearly any class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint of fastres: {reason}"
        ) from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the check sum of {damaged} in it differs")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of fastres")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version must be {VERSION}, got {state.get('version')}"
        )
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    return state


def _damaged_part(raw: io.BytesIO) -> str | None:
    """The first part whose check sum differs: torch writes them, and reads without a look."""
    if not zipfile.is_zipfile(raw):
        return None  # torch's format of before 1.6, which is foreign here
    with zipfile.ZipFile(raw) as archive:
        return archive.testzip()


def check_same_network(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises CheckpointError naming the first keys by which two state_dicts differ."""
    differing = [f"{key} is missing in it" for key in own if key not in saved]
    differing += [f"{key} is only in it" for key in saved if key not in own]
    differing += [
        f"{key} is {tuple(saved[key].shape)} in it and {tuple(own[key].shape)} here"
        for key in own
        if key in saved and saved[key].shape != own[key].shape
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of another network: {len(differing)} keys differ, "
            f"first: {'; '.join(differing[:_NAMED_KEYS])}"
        )
