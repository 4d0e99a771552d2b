"""The C++/CUDA extension: found, built where needed, and loaded as torch.ops.fastres_native.

Nothing here runs at import; the first call of `load` or `has_cuda` does the work. Environment:
FASTRES_CACHE (folder of built libraries), FASTRES_BUILD=0 (never compile), FASTRES_CUDA=1 or 0
(build the CUDA kernels without a GPU, or never), TORCH_CUDA_ARCH_LIST, CXX, CUDA_HOME, MAX_JOBS.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .compile import RECORD_FILE, compile_into
from .library import CPU, CUDA, ahead_of_time_files, cuda_unwanted_reason
from .toolchain import Unavailable

__all__ = [
    "Unavailable",
    "build",
    "build_ahead_of_time",
    "cuda_unavailable_reason",
    "describe",
    "has_cuda",
    "load",
    "unavailable_reason",
]


def load() -> bool:
    """Load the schemas and CPU kernels; True where torch.ops.fastres_native works on the CPU.

    Warns:
        RuntimeWarning: once per process, with the cause, where they cannot be built or loaded.
    """
    return CPU.load()


def unavailable_reason() -> str | None:
    """Why `load` is False (it is tried first), or None."""
    CPU.load()
    return CPU.reason


def has_cuda() -> bool:
    """Load the CUDA kernels too; True where torch.ops.fastres_native works on CUDA tensors.

    False without a warning where there is no GPU (unless FASTRES_CUDA=1).
    """
    if CUDA.path is not None:
        return True
    return load() and cuda_unwanted_reason() is None and CUDA.load()


def cuda_unavailable_reason() -> str | None:
    """Why `has_cuda` is False (it is tried first), or None."""
    if has_cuda():
        return None
    return CPU.reason or cuda_unwanted_reason() or CUDA.reason


def build(verbose: bool = False) -> list[Path]:
    """Compile into the cache what is of use here, whether or not a library is loaded already.

    Raises:
        Unavailable: it cannot be built; a RuntimeError.
    """
    wanted = [CPU, *([] if cuda_unwanted_reason() else [CUDA])]
    return [library.build(verbose) for library in wanted]


def build_ahead_of_time(folder: Path, verbose: bool = False) -> list[tuple[Path, str]]:
    """Compile in the empty `folder` what is of use here, for setup.py: pairs of a built file and
    its name inside the package. The CUDA kernels are left out where they do not compile.

    Raises:
        Unavailable: the CPU kernels cannot be built.
    """
    results = []
    for library in (CPU, CUDA):
        if library is CUDA and cuda_unwanted_reason():
            continue
        work = folder / library.name
        work.mkdir()
        try:
            built = compile_into(library.recipe(), work, verbose)
        except Unavailable as error:
            if library is CPU:
                raise
            print(f"fastres: no CUDA kernels ({error})", file=sys.stderr)
            continue
        names = [path.name for path in ahead_of_time_files(library.name)]
        results += zip((built, work / RECORD_FILE), names, strict=True)
    return results


def describe() -> dict[str, dict[str, str | None]]:
    """Per library: path, key, origin ("cache" or "built ahead of time") and the reason why not, as
    far as loading has been tried."""
    return {
        library.name: {
            "path": str(library.path) if library.path else None,
            "key": library.key,
            "origin": library.origin,
            "reason": library.reason,
        }
        for library in (CPU, CUDA)
    }
