"""Find what compiles the extension: g++, ninja, and a CUDA toolkit that matches torch's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

DEFAULT_CUDA_ARCHITECTURES = ("80", "90", "100", "120")


class Unavailable(RuntimeError):
    """The native kernels cannot be built or loaded here; the message says why."""


@dataclass(frozen=True)
class Compiler:
    """A host C++ compiler: its command (with a launcher such as ccache, if any) and version."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class CudaToolkit:
    """An nvcc, the folder of the toolkit it really belongs to, and its (major, minor) version."""

    nvcc: Path
    root: Path
    version: tuple[int, int]

    def include_folder(self) -> Path:
        """The folder with cuda_runtime.h."""
        for name in ("include", "targets/x86_64-linux/include", "targets/sbsa-linux/include"):
            if (self.root / name / "cuda_runtime.h").is_file():
                return self.root / name
        raise Unavailable(f"the CUDA toolkit in {self.root} has no cuda_runtime.h")

    def library_folder(self) -> Path:
        """The folder with libcudart."""
        for name in ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib"):
            if any((self.root / name).glob("libcudart.so*")):
                return self.root / name
        raise Unavailable(f"the CUDA toolkit in {self.root} has no libcudart")


def _output(command: list[str]) -> str | None:
    """What `command` prints on both streams, or None where it does not run or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def find_compiler() -> Compiler:
    """$CXX where it is GNU C++, else g++. Clang is refused: it ignores `#pragma GCC target` and its
    OpenMP runtime would be a second one beside torch's.

    Raises:
        Unavailable: there is none.
    """
    candidates = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else []
    candidates += [["g++"], ["c++"]]
    tried = []
    for command in candidates:
        if not command or shutil.which(command[0]) is None:
            tried.append(f"{shlex.join(command)}: not found")
            continue
        text = _output([*command, "--version"])
        if text and "Free Software Foundation" in text:
            return Compiler(tuple(command), text.splitlines()[0])
        tried.append(f"{shlex.join(command)}: not GNU C++")
    raise Unavailable(f"no C++ compiler ({'; '.join(tried)}); install g++")


def find_ninja() -> str:
    """The ninja executable of the `ninja` package, else of PATH.

    Raises:
        Unavailable: there is none.
    """
    try:
        import ninja
    except ImportError:
        pass
    else:
        bundled = shutil.which("ninja", path=ninja.BIN_DIR)
        if bundled:
            return bundled
    found = shutil.which("ninja")
    if found is None:
        raise Unavailable("ninja is not installed (pip install ninja)")
    return found


def _toolkit_roots(nvcc: Path) -> list[Path]:
    """Where the toolkit of `nvcc` may be. It may be a wrapper script, so that its own place says
    nothing: the dry run names the folder it really starts from."""
    text = _output([str(nvcc), "--dryrun", "-x", "cu", os.devnull]) or ""
    stated = re.search(r"^#\$ TOP=(.+)$", text, re.MULTILINE)
    roots = [Path(stated.group(1).strip())] if stated else []
    return [root.resolve() for root in (*roots, nvcc.resolve().parent.parent)]


def _complete_toolkit(nvcc: Path) -> CudaToolkit | None:
    release = re.search(r"release (\d+)\.(\d+)", _output([str(nvcc), "--version"]) or "")
    if release is None:
        return None
    for root in _toolkit_roots(nvcc):
        toolkit = CudaToolkit(nvcc, root, (int(release.group(1)), int(release.group(2))))
        try:
            toolkit.include_folder()
            toolkit.library_folder()
        except Unavailable:
            continue
        return toolkit
    return None


def find_cuda_toolkit() -> CudaToolkit:
    """The toolkit of $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda that fits this torch.

    Raises:
        Unavailable: torch is a CPU build, there is no nvcc, or its major version is not torch's.
    """
    if torch.version.cuda is None:
        raise Unavailable("this torch is not a CUDA build")
    wanted = int(torch.version.cuda.split(".")[0])
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [str(Path(home, "bin")) for home in homes if home]
    places += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    rejected = []
    for place in places:
        found = shutil.which("nvcc", path=place)
        if found is None:
            continue
        toolkit = _complete_toolkit(Path(found))
        if toolkit is None:
            rejected.append(f"{found} does not belong to a complete toolkit")
        elif toolkit.version[0] == wanted:
            return toolkit
        else:
            have = ".".join(map(str, toolkit.version))
            rejected.append(f"{found} is CUDA {have}, torch was built for {torch.version.cuda}")
    raise Unavailable("; ".join(dict.fromkeys(rejected)) or "nvcc is not installed")


def cuda_architectures(toolkit: CudaToolkit) -> tuple[str, ...]:
    """What to compile for, as "90" or "90+PTX": $TORCH_CUDA_ARCH_LIST, else the GPUs that are here,
    else the default list as far as this nvcc knows it, with PTX of the first for all other chips.

    Raises:
        Unavailable: $TORCH_CUDA_ARCH_LIST is malformed.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for entry in listed:
        if not re.fullmatch(r"\d+\.?\d[a-f]?(\+PTX)?", entry):
            raise Unavailable(
                f"TORCH_CUDA_ARCH_LIST must list versions such as 9.0 or 8.0+PTX, got {entry!r}"
            )
    if listed:
        return tuple(entry.replace(".", "") for entry in listed)
    if torch.cuda.is_available():
        present = {
            torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())
        }
        return tuple(f"{major}{minor}" for major, minor in sorted(present))
    known = set(re.findall(r"compute_(\w+)", _output([str(toolkit.nvcc), "--list-gpu-arch"]) or ""))
    usable = [arch for arch in DEFAULT_CUDA_ARCHITECTURES if not known or arch in known]
    return (f"{usable[0]}+PTX", *usable[1:])


def gencode_flags(architectures: tuple[str, ...]) -> list[str]:
    """nvcc's -gencode flags for `cuda_architectures`' result."""
    flags = []
    for entry in architectures:
        arch = entry.removesuffix("+PTX")
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


def runs_on(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for `architectures` runs on a GPU of `capability`: binaries run on the same
    major version from their minor on, PTX on everything later."""
    for entry in architectures:
        digits = re.match(r"(\d+)(\d)([a-f]?)", entry)
        if digits is None:
            continue
        have = (int(digits.group(1)), int(digits.group(2)))
        specific = bool(digits.group(3))
        same_major = have[0] == capability[0] and have <= capability and not specific
        from_ptx = entry.endswith("+PTX") and have <= capability and not specific
        if same_major or from_ptx or have == capability:
            return True
    return False
