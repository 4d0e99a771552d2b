"""What to compile and how; the same for the first use, `python -m fastres.extension` and setup.py.
Two libraries come out, `cpu` and `cuda`, so that neither waits for the other.

Operators are registered with TORCH_LIBRARY, without Python.h: one file serves every Python.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .toolchain import (
    Unavailable,
    cuda_architectures,
    find_compiler,
    find_cuda_toolkit,
    gencode_flags,
)

# No -march: the vectorised files choose their instruction set by pragma and are chosen at run time.
CXX_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
)
NVCC_FLAGS = (
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "--threads=0",
    "-Xcompiler=-fPIC,-Wall,-fvisibility=hidden",
)


@dataclass(frozen=True)
class Recipe:
    """How to build one library, and what it depends on.

    `identity` is what a finished library must agree on with the running process to be loadable;
    `key` also covers the compilers and flags, and names the entry in the cache.
    """

    name: str
    root: Path
    sources: tuple[Path, ...]
    commands: dict[str, tuple[str, ...]]
    link: tuple[str, ...]
    identity: dict[str, str]
    tools: dict[str, str]
    architectures: tuple[str, ...] = field(default=())

    @property
    def key(self) -> str:
        described = json.dumps([self.name, self.identity, self.tools], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(described.encode()).hexdigest()[:20]}"


def source_root() -> Path:
    """csrc/ beside the package (wheel) or beside its parent (checkout).

    Raises:
        Unavailable: the sources were not installed.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "csrc", package.parent / "csrc"):
        if (root / "library.cpp").is_file():
            return root
    raise Unavailable(f"the C++ sources are missing (no csrc/library.cpp in {package})")


def identity(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """What a library built from `folders` of `root` has to share with this process."""
    files = [path for folder in folders for path in (root / folder).rglob("*")]
    files += [path for path in root.iterdir() if path.suffix == ".cpp"]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in (".cpp", ".cu", ".h", ".cuh")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return {
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "machine": f"{platform.system()} {platform.machine()}",
        "sources": digest.hexdigest(),
    }


def cpu_identity(root: Path) -> dict[str, str]:
    """`identity` of the CPU library."""
    return identity(root, ("common", "cpu"))


def cuda_identity(root: Path) -> dict[str, str]:
    """`identity` of the CUDA library."""
    return identity(root, ("common", "cuda"))


def _torch_flags() -> tuple[list[str], list[str]]:
    """Compile flags and link flags for torch's headers and libraries. System headers, so that
    warnings in them are not ours. torch.utils.cpp_extension is avoided: importing it logs a
    complaint where a toolkit is installed and no GPU is."""
    folder = Path(torch.__file__).resolve().parent
    include = folder / "include"
    compile_flags = ["-isystem", str(include)]
    compile_flags += ["-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    compile_flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    return compile_flags, [f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu"]


def cpu_recipe(root: Path | None = None) -> Recipe:
    """The library with the schemas and the CPU kernels.

    Raises:
        Unavailable: no compiler.
    """
    root = root or source_root()
    compiler = find_compiler()
    torch_flags, torch_link = _torch_flags()
    return Recipe(
        name="cpu",
        root=root,
        sources=(*sorted(root.glob("*.cpp")), *sorted((root / "cpu").glob("*.cpp"))),
        commands={"cxx": (*compiler.command, *CXX_FLAGS, f"-I{root}", *torch_flags, "-c")},
        # Linked without -fopenmp: the GOMP_* symbols then come from the runtime that libtorch_cpu
        # brings. A second OpenMP runtime would fight the first for the cores.
        link=(*compiler.command, "-shared", *torch_link),
        identity=cpu_identity(root),
        tools={"compiler": compiler.version, "flags": shlex.join(CXX_FLAGS)},
    )


def cuda_recipe(root: Path | None = None) -> Recipe:
    """The library with the CUDA kernels; it needs the CPU library's schemas to be loaded.

    Raises:
        Unavailable: no compiler, or no toolkit that fits torch.
    """
    root = root or source_root()
    compiler = find_compiler()
    toolkit = find_cuda_toolkit()
    architectures = cuda_architectures(toolkit)
    torch_flags, torch_link = _torch_flags()
    # the compiler itself: CXX may be "ccache g++" or "g++ -m64"
    name = next(word for word in reversed(compiler.command) if not word.startswith("-"))
    host = shutil.which(name) or name
    nvcc = (str(toolkit.nvcc), *NVCC_FLAGS, f"-ccbin={host}", *gencode_flags(architectures))
    return Recipe(
        name="cuda",
        root=root,
        sources=(*sorted((root / "cuda").glob("*.cu")), *sorted((root / "cuda").glob("*.cpp"))),
        commands={
            "nvcc": (*nvcc, f"-I{root}", "-c"),
            "cxx": (
                *compiler.command,
                *CXX_FLAGS,
                f"-I{root}",
                *torch_flags,
                *("-isystem", str(toolkit.include_folder())),
                "-c",
            ),
        },
        link=(
            *compiler.command,
            "-shared",
            *torch_link,
            "-lc10_cuda",
            "-ltorch_cuda",
            f"-L{toolkit.library_folder()}",
            "-lcudart",
        ),
        identity=cuda_identity(root),
        tools={
            "compiler": compiler.version,
            "nvcc": ".".join(map(str, toolkit.version)),
            "flags": shlex.join((*CXX_FLAGS, *nvcc[1:])),
        },
        architectures=architectures,
    )
