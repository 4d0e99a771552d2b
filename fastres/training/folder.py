"""The folder of a run: one process at a time writes to it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from fastres.training.checkpoint import temporary_of
from fastres.training.distributed import World
from fastres.training.errors import TrainingError, UsageError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing guards the folder
    fcntl = None

LOCK = ".lock"
# what a file system without locks says
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def make_folder(folder: Path) -> None:
    """Raises TrainingError where the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {folder}: {error.strerror}") from None


@contextlib.contextmanager
def hold_folder(folder: Path, world: World) -> Iterator[None]:
    """Keeps other runs out of a run's folder while the context lasts.

    Only rank 0 touches it. The lock is the kernel's, on the file .lock, and so gone with the
    process that holds it, however that one ends. Raises UsageError on every rank where another
    process holds it, TrainingError where the folder cannot be written.
    """
    held: list[int] = []
    world.from_main(lambda: held.append(_lock(folder)))
    try:
        yield
    finally:
        for handle in held:
            os.close(handle)


def _lock(folder: Path) -> int:
    """A handle whose closing gives the folder free."""
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}") from None
    try:
        if fcntl is not None:
            _take(handle, folder)
        for name in ("last.pt", "best.pt"):  # left by a kill inside a save
            with contextlib.suppress(OSError):
                temporary_of(folder / name).unlink()
    except BaseException:
        os.close(handle)
        raise
    return handle


def _take(handle: int, folder: Path) -> None:
    try:
        # not flock: forked workers of a killed process would go on holding that
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise TrainingError(f"cannot lock {folder / LOCK}: {error.strerror}") from None
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        raise UsageError(
            f"{folder} is in use by another run{f' ({holder})' if holder else ''}: "
            "wait for it, end it, or choose another out"
        ) from None
    with contextlib.suppress(OSError):  # only for the message; a disk may be full
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
