"""How the build finds its tools, what it refuses, and the OpenMP runtime that the result uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastres import extension
from fastres.extension import recipe, toolchain
from fastres.extension.toolchain import CudaToolkit, Unavailable


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def toolkit(root: Path, release: str = "99.1") -> Path:
    """A folder that looks like a CUDA toolkit; the nvcc in it."""
    (root / "include").mkdir(parents=True)
    (root / "include" / "cuda_runtime.h").touch()
    (root / "lib64").mkdir()
    (root / "lib64" / "libcudart.so").touch()
    return program(
        root / "bin" / "nvcc",
        f'case "$1" in --dryrun) echo "#\\$ TOP={root}/bin/.." >&2 ;;\n'
        f'  --list-gpu-arch) printf "compute_80\\ncompute_90\\n" ;;\n'
        f'  *) echo "Cuda compilation tools, release {release}, V{release}.1" ;; esac\n',
    )


@pytest.fixture
def cuda_torch(monkeypatch, tmp_path):
    """A torch built for CUDA 99.0, and no toolkit but those of the test."""
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"/usr/bin:/bin:{tmp_path / 'bin'}")
    return monkeypatch


def test_toolkit_behind_a_wrapper_script_is_the_real_one(cuda_torch, tmp_path):
    real = toolkit(tmp_path / "real")
    wrapper = program(tmp_path / "bin" / "nvcc", f'exec "{real}" "$@"\n')
    found = toolchain.find_cuda_toolkit()
    assert found == CudaToolkit(wrapper, (tmp_path / "real").resolve(), (99, 1))
    assert found.library_folder() == (tmp_path / "real").resolve() / "lib64"


def test_toolkit_of_another_major_version_is_refused_with_both_versions(cuda_torch, tmp_path):
    real = toolkit(tmp_path / "real", release="98.4")
    cuda_torch.setenv("CUDA_HOME", str(tmp_path / "real"))
    with pytest.raises(Unavailable, match=re.escape(f"{real} is CUDA 98.4, torch was built for")):
        toolchain.find_cuda_toolkit()


def test_fitting_toolkit_is_found_past_one_that_does_not_fit(cuda_torch, tmp_path):
    toolkit(tmp_path / "old", release="98.4")
    toolkit(tmp_path / "fits")
    cuda_torch.setenv("CUDA_HOME", str(tmp_path / "old"))
    cuda_torch.setenv("CUDA_PATH", str(tmp_path / "fits"))
    assert toolchain.find_cuda_toolkit().root == (tmp_path / "fits").resolve()


def test_cpu_build_of_torch_needs_no_toolkit(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(Unavailable, match="not a CUDA build"):
        toolchain.find_cuda_toolkit()


def test_architectures(cuda_torch, tmp_path):
    nvcc = toolkit(tmp_path / "real")
    found = CudaToolkit(nvcc, tmp_path / "real", (99, 1))
    cuda_torch.setattr(torch.cuda, "is_available", lambda: False)
    assert toolchain.cuda_architectures(found) == ("80+PTX", "90")
    cuda_torch.setattr(torch.cuda, "is_available", lambda: True)
    cuda_torch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda_torch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert toolchain.cuda_architectures(found) == ("90",)
    cuda_torch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a 10.0+PTX")
    assert toolchain.cuda_architectures(found) == ("80", "90a", "100+PTX")
    assert toolchain.gencode_flags(("100+PTX",)) == [
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    cuda_torch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(Unavailable, match="got 'Hopper'"):
        toolchain.cuda_architectures(found)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["80"], (8, 0), True),
        (["80"], (8, 9), True),
        (["86"], (8, 0), False),
        (["80"], (9, 0), False),
        (["80+PTX"], (12, 0), True),
        (["90+PTX"], (8, 0), False),
        (["90a"], (9, 0), True),
        (["100a"], (10, 3), False),
        (["80", "120"], (12, 1), True),
    ],
)
def test_which_binaries_run_on_a_gpu(built, capability, runs):
    assert toolchain.runs_on(built, capability) is runs


def test_clang_is_refused(monkeypatch, tmp_path):
    program(tmp_path / "g++", "echo clang version 99\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "g++")
    with pytest.raises(Unavailable, match=r"g\+\+: not GNU C\+\+"):
        toolchain.find_compiler()


def test_compiler_launcher_stays_in_the_command(monkeypatch, tmp_path):
    program(tmp_path / "ccache", "echo Free Software Foundation\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "ccache g++")
    assert toolchain.find_compiler().command == ("ccache", "g++")


def test_key_follows_torch_compiler_and_flags(monkeypatch):
    before = recipe.cpu_recipe()
    assert recipe.cpu_recipe().key == before.key
    monkeypatch.setattr(recipe, "CXX_FLAGS", (*recipe.CXX_FLAGS, "-g"))
    flags = recipe.cpu_recipe()
    assert flags.key != before.key
    assert flags.identity == before.identity
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert recipe.cpu_recipe().key not in (before.key, flags.key)
    assert recipe.cpu_recipe().identity != before.identity


ONE_RUNTIME = """
from pathlib import Path
import torch
from fastres import extension
assert extension.load(), extension.unavailable_reason()
(torch.randn(512, 512) @ torch.randn(512, 512)).relu()
maps = Path("/proc/self/maps").read_text().splitlines()
print(*sorted({line.split()[-1] for line in maps if "omp" in Path(line.split()[-1]).name}))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_extension_brings_no_second_openmp_runtime():
    if not extension.load():
        pytest.skip(extension.unavailable_reason())
    done = subprocess.run(
        [sys.executable, "-c", ONE_RUNTIME],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    runtimes = [path for path in done.stdout.split() if re.search(r"lib(g|i|)omp", path)]
    assert len(runtimes) == 1, runtimes


def test_importing_fastres_builds_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import fastres, fastres.extension as e; print(e.describe())"],
        env={**os.environ, "FASTRES_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not (tmp_path / "cache").exists()
    assert "'origin': None" in done.stdout
