"""Packages and the ahead-of-time build. Metadata is in pyproject.toml.

With `pip install --no-build-isolation` torch is importable here and the C++/CUDA extension is built
into the package, by the code that otherwise builds it on first use. Without torch nothing is built.
"""

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent


def extension_builder():
    """fastres/extension as a module of its own: importing fastres would need its dependencies."""
    folder = ROOT / "fastres" / "extension"
    name = "_fastres_extension"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(Command):
    """Build the extension into the package; a part of `build`."""

    description = "build the C++/CUDA extension"
    user_options = []  # noqa: RUF012 - the type that setuptools wants

    def initialize_options(self):
        self.build_lib = None
        self.editable_mode = False
        self.built = []

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        folder = ROOT / "fastres" if self.editable_mode else Path(self.build_lib, "fastres")
        for left in folder.glob("_native_*"):
            left.unlink()
        if os.environ.get("FASTRES_BUILD") == "0" or importlib.util.find_spec("torch") is None:
            self.announce("fastres: the extension will be built on first use", level=logging.INFO)
            return
        extension = extension_builder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            try:
                results = extension.build_ahead_of_time(Path(work), verbose=bool(self.verbose))
            except extension.Unavailable as error:
                self.announce(f"fastres: no ahead-of-time build ({error})", level=logging.WARNING)
                return
            for source, name in results:
                shutil.copyfile(source, folder / name)
                self.built.append(str(folder / name))

    def get_source_files(self):
        return [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[chcu]*")]

    def get_outputs(self):
        return self.built

    def get_output_mapping(self):
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012


class BinaryWheel(bdist_wheel):
    """A wheel with the extension in it is for this platform, but for any Python 3."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class FastresDistribution(Distribution):
    def has_ext_modules(self):
        return os.environ.get("FASTRES_BUILD") != "0" and bool(importlib.util.find_spec("torch"))


def below(name):
    """The package `name` mapped to the top-level folder of its last part, with its subfolders."""
    top = name.rpartition(".")[2]
    folders = [path for path in (ROOT / top).rglob("*") if path.is_dir() and path.name[0] != "_"]
    return [name, *(f"{name}.{'.'.join(p.relative_to(ROOT / top).parts)}" for p in sorted(folders))]


setup(
    distclass=FastresDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": BinaryWheel},
    packages=[
        *find_packages(include=["fastres", "fastres.*"]),
        *below("fastres.kernels"),
        *below("fastres.csrc"),
    ],
    package_dir={"fastres.kernels": "kernels", "fastres.csrc": "csrc"},
    package_data={
        "": ["*.cpp", "*.cu", "*.cuh", "*.h", "py.typed"],
        "fastres.kernels.configs": ["*.json"],
    },
)
