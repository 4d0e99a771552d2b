"""A one-function library that stands for the extension: it compiles in a moment.

Run as a program it loads the library once and prints what came of it as JSON; TINY_ROOT names the
folder of its source.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import warnings
from pathlib import Path

from fastres.extension.library import Library
from fastres.extension.recipe import Recipe, identity
from fastres.extension.toolchain import find_compiler

SOURCE = 'extern "C" int answer() { return 42; }\n'

# Stands in for g++: notes every compilation, and takes TINY_SECONDS over it.
COMPILER = """#!/bin/sh
case "$*" in
  *--version*) ;;
  *" -c "*) echo compiled >> "$TINY_ROOT/log"; sleep "${TINY_SECONDS:-0}" ;;
esac
exec g++ "$@"
"""


def write(root: Path) -> None:
    """The source and the compiler's stand-in."""
    (root / "library.cpp").write_text(SOURCE)
    compiler = root / "slow-g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)


def recipe(root: Path) -> Recipe:
    """How to build the library in `root`."""
    compiler = find_compiler()
    return Recipe(
        name="tiny",
        root=root,
        sources=(root / "library.cpp",),
        commands={"cxx": (*compiler.command, "-fPIC", "-c")},
        link=(*compiler.command, "-shared"),
        identity=identity(root, ()),
        tools={"compiler": compiler.version},
    )


def library(root: Path) -> Library:
    """The library in `root`, not yet loaded."""
    return Library("tiny", lambda: recipe(root), lambda: identity(root, ()), "compiling tiny")


def main() -> None:
    tiny = library(Path(os.environ["TINY_ROOT"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = [tiny.load(), tiny.load()]
    answer = ctypes.CDLL(str(tiny.path)).answer() if tiny.path else None
    told = [str(warning.message) for warning in caught]
    json.dump({"loaded": loaded, "answer": answer, "warnings": told}, sys.stdout)


if __name__ == "__main__":
    main()
