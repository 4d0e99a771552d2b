"""The folder of libraries built on first use.

An entry is a folder named by its recipe's key. It is built under another name and renamed, so that
it is either whole or absent. Builders of one key take turns through flock, which the kernel lets go
when its holder dies: a lock file left behind means nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .compile import LIBRARY_FILE, RECORD_FILE, compile_into, read_record
from .recipe import Recipe
from .toolchain import Unavailable

_BUILDING = "building-"
_STALE_SECONDS = 24 * 3600
_POLL_SECONDS = 0.2


def folder() -> Path:
    """$FASTRES_CACHE, else fastres/ in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        Unavailable: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    stated = os.environ.get("FASTRES_CACHE") or os.path.join(base, "fastres")
    try:
        return Path(stated).expanduser()
    except RuntimeError as error:
        raise Unavailable(f"no folder for {stated} ({error}); set FASTRES_CACHE") from error


def lookup(recipe: Recipe) -> Path | None:
    """The library of `recipe`, or None where the entry is missing or damaged."""
    entry = folder() / recipe.key
    library = entry / LIBRARY_FILE
    record = read_record(library, entry / RECORD_FILE)
    return library if record is not None and record["identity"] == recipe.identity else None


def discard(recipe: Recipe) -> None:
    """Take an entry out of the cache, in one step."""
    entry = folder() / recipe.key
    grave = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=folder()))
    with contextlib.suppress(OSError):
        entry.rename(grave / "discarded")
    shutil.rmtree(grave, ignore_errors=True)


def build(recipe: Recipe, announce: str | None = None, verbose: bool = False) -> Path:
    """The library of `recipe`, built unless another process has just done it.

    `announce` is printed on stderr before compiling.

    Raises:
        Unavailable: the cache folder cannot be written or the compiler failed.
    """
    root = folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        with _turn(root / f"{recipe.key}.lock"):
            done = lookup(recipe)
            if done is not None:
                return done
            if announce:
                # one plain line, before a silence of half a minute
                print(announce, file=sys.stderr, flush=True)
            return _build_entry(recipe, root, verbose)
    except OSError as error:
        raise Unavailable(
            f"the cache folder {root} cannot be used ({error}); set FASTRES_CACHE to another"
        ) from error


def _build_entry(recipe: Recipe, root: Path, verbose: bool) -> Path:
    entry = root / recipe.key
    work = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=root))
    try:
        compile_into(recipe, work, verbose)
        finished = work / "entry"
        finished.mkdir()
        for name in (LIBRARY_FILE, RECORD_FILE):
            (work / name).rename(finished / name)
        if entry.exists() and lookup(recipe) is None:
            discard(recipe)
        try:
            finished.rename(entry)
        except OSError:
            # without working locks (some network file systems) another process may have won
            if lookup(recipe) is None:
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return entry / LIBRARY_FILE


@contextlib.contextmanager
def _turn(path: Path, patience_seconds: float = 900.0) -> Iterator[None]:
    """Hold the lock `path`. Where locks do not work or the wait is too long, go on without it: the
    rename keeps a double build harmless."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "ab") as file:
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
            except OSError:
                break
        yield


def _sweep(root: Path) -> None:
    """Remove what killed builds left behind, once it is surely nobody's."""
    for left in root.glob(f"{_BUILDING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
