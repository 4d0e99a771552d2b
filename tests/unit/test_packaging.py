"""A wheel holds what the package needs at run time, and the version is stated once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest

import fastres
from fastres.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("fastres", "kernels", "csrc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel without the ahead-of-time build, made from a copy of the checkout."""
    if (
        util.find_spec("setuptools") is None
        or int(metadata.version("setuptools").split(".")[0]) < 77
    ):
        pytest.skip("needs setuptools >= 77 to build without isolation")
    work = tmp_path_factory.mktemp("wheel")
    copy = work / "checkout"
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "_native_*")
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "--disable-pip-version-check", "-w", str(work)],
        cwd=copy,
        env={**os.environ, "FASTRES_BUILD": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = work.glob("*.whl")
    return built


def test_without_the_extension_the_wheel_is_for_any_platform(wheel):
    assert wheel.name == f"fastres-{__version__}-py3-none-any.whl"


def test_wheel_holds_every_source_and_table(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    suffixes = {".py", ".cpp", ".cu", ".cuh", ".h", ".json", ".typed"}
    for part in PARTS:
        for path in (ROOT / part).rglob("*"):
            relative = path.relative_to(ROOT)
            if "__pycache__" in relative.parts or path.name.startswith("_native_"):
                continue
            if path.is_file() and path.suffix in suffixes:
                inside = relative if part == "fastres" else Path("fastres") / relative
                assert inside.as_posix() in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastres", f"fastres-{__version__}.dist-info"}


def test_installed_wheel_finds_its_kernels_and_sources(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import fastres, fastres.kernels\n"
        "from fastres.extension.recipe import cpu_identity, source_root\n"
        "print(fastres.__file__, fastres.kernels.__file__, source_root())\n"
        "print(cpu_identity(source_root())['sources'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *paths, _ = done.stdout.split()
    assert all(Path(path).is_relative_to(tmp_path / "fastres") for path in paths), paths


def test_version_is_stated_once():
    assert fastres.__version__ == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exec make test" in script.read_text()
