"""Load the libraries: built ahead of time, from the cache, or built now; once per process."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import cache
from .compile import read_record
from .recipe import Recipe, cpu_identity, cpu_recipe, cuda_identity, cuda_recipe, source_root
from .toolchain import Unavailable, runs_on

PACKAGE = Path(__file__).resolve().parent.parent


def ahead_of_time_files(name: str, folder: Path = PACKAGE) -> tuple[Path, Path]:
    """Where setup.py puts the library `name` and its record."""
    return folder / f"_native_{name}.so", folder / f"_native_{name}.json"


class Library:
    """One shared library of operators and what became of loading it.

    recipe: makes the recipe, or raises Unavailable.
    identity: what a library built ahead of time has to agree on, or raises Unavailable.
    announce: the line printed on stderr before a build.
    """

    def __init__(
        self,
        name: str,
        recipe: Callable[[], Recipe],
        identity: Callable[[], dict[str, str]],
        announce: str,
    ) -> None:
        self.name = name
        self.path: Path | None = None
        self.key: str | None = None
        self.origin: str | None = None
        self.reason: str | None = None
        self.recipe = recipe
        self._identity = identity
        self._announce = announce
        self._mutex = threading.Lock()
        self._tried = False

    def load(self) -> bool:
        """Whether the library is loaded; the first call tries, later ones repeat its answer.

        Warns:
            RuntimeWarning: once, where it could not be built or loaded.
        """
        if self.path is not None:
            return True
        with self._mutex:
            if self._tried:
                return self.path is not None
            try:
                self._load()
            except Unavailable as error:
                self.reason = str(error)
            # an interrupt from the keyboard comes past here: the next call tries again
            self._tried = True
        if self.reason is not None and _building_allowed():
            warnings.warn(
                f"fastres: the native {self.name} kernels are not available, a slower path is "
                f"used. {self.reason}",
                RuntimeWarning,
                stacklevel=3,
            )
        return self.path is not None

    def build(self, verbose: bool = False) -> Path:
        """Bring the library into the cache without loading it.

        Raises:
            Unavailable: it cannot be built.
        """
        return cache.build(self.recipe(), verbose=verbose)

    def _load(self) -> None:
        if self._load_ahead_of_time():
            return
        recipe = self.recipe()
        cached = cache.lookup(recipe)
        if cached is not None:
            try:
                self._open(cached, recipe.key, "cache")
                return
            except OSError:
                # intact but not loadable here, for instance built against another C library
                if not _building_allowed():
                    raise Unavailable(f"{cached} cannot be loaded") from None
                cache.discard(recipe)
        if not _building_allowed():
            raise Unavailable("not built, and FASTRES_BUILD=0 forbids building")
        library = cache.build(recipe, announce=self._announce)
        try:
            self._open(library, recipe.key, "cache")
        except OSError as error:
            raise Unavailable(f"the library was built but cannot be loaded: {error}") from error

    def _load_ahead_of_time(self) -> bool:
        library, record_file = ahead_of_time_files(self.name)
        record = read_record(library, record_file)
        if record is None or record.get("identity") != self._identity():
            return False
        architectures = record.get("architectures")
        if architectures and not all(
            runs_on(architectures, torch.cuda.get_device_capability(index))
            for index in range(torch.cuda.device_count())
        ):
            return False
        try:
            self._open(library, record["key"], "built ahead of time")
        except OSError:
            return False
        return True

    def _open(self, path: Path, key: str, origin: str) -> None:
        torch.ops.load_library(str(path))
        self.path, self.key, self.origin = path, key, origin


def _building_allowed() -> bool:
    return os.environ.get("FASTRES_BUILD", "1") != "0"


def cuda_unwanted_reason() -> str | None:
    """Why CUDA kernels are of no use here, or None: a GPU is present or FASTRES_CUDA=1 asks."""
    stated = os.environ.get("FASTRES_CUDA")
    if stated == "0":
        return "FASTRES_CUDA=0 forbids the CUDA kernels"
    if stated != "1" and not torch.cuda.is_available():
        return "no GPU (FASTRES_CUDA=1 builds the CUDA kernels all the same)"
    return None


CPU = Library(
    "cpu",
    cpu_recipe,
    lambda: cpu_identity(source_root()),
    "fastres: compiling the native kernels (once, about 40 s) ...",
)
CUDA = Library(
    "cuda",
    cuda_recipe,
    lambda: cuda_identity(source_root()),
    "fastres: compiling the CUDA kernels (once, about a minute) ...",
)
