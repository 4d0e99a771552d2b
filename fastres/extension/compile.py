"""Run a recipe with ninja, and the record that goes with a finished library."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path

from .recipe import Recipe
from .toolchain import Unavailable, find_ninja

LIBRARY_FILE = "native.so"
RECORD_FILE = "build.json"


def _ninja_text(text: str) -> str:
    return text.replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return _ninja_text(str(path)).replace(" ", "$ ").replace(":", "$:")


def _write_ninja(recipe: Recipe, folder: Path) -> None:
    lines = ["ninja_required_version = 1.3"]
    for rule, command in recipe.commands.items():
        lines += [f"rule {rule}", f"  command = {_ninja_text(shlex.join(command))} $in -o $out"]
    # the libraries come after the objects, for linkers that read from left to right
    program, libraries = list(recipe.link), []
    while program and program[-1].startswith(("-l", "-L")):
        libraries.insert(0, program.pop())
    link = f"{_ninja_text(shlex.join(program))} $in -o $out {_ninja_text(shlex.join(libraries))}"
    lines += ["rule link", f"  command = {link}"]
    objects = []
    for source in recipe.sources:
        relative = source.relative_to(recipe.root).as_posix()
        objects.append(relative.replace("/", "_") + ".o")
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {_ninja_path(Path(objects[-1]))}: {rule} {_ninja_path(source)}")
    targets = " ".join(_ninja_path(Path(name)) for name in objects)
    lines += [f"build {LIBRARY_FILE}: link {targets}", f"default {LIBRARY_FILE}", ""]
    (folder / "build.ninja").write_text("\n".join(lines))


def _jobs() -> int:
    try:
        return max(1, int(os.environ["MAX_JOBS"]))
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def compile_into(recipe: Recipe, folder: Path, verbose: bool = False) -> Path:
    """Build `recipe` in the empty `folder`; leaves LIBRARY_FILE and RECORD_FILE there.

    Raises:
        Unavailable: the compiler failed; the message ends with the last lines of its output.
    """
    if not recipe.sources:
        raise Unavailable(f"no sources of the {recipe.name} library in {recipe.root}")
    _write_ninja(recipe, folder)
    command = [find_ninja(), f"-j{_jobs()}", *(["-v"] if verbose else [])]
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=None if verbose else subprocess.PIPE,
        stderr=None if verbose else subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )
    library = folder / LIBRARY_FILE
    if done.returncode != 0 or not library.is_file():
        tail = "\n".join((done.stdout or "").strip().splitlines()[-15:])
        raise Unavailable(f"compiling the {recipe.name} library failed:\n{tail}".rstrip(":\n"))
    record = {
        "key": recipe.key,
        "identity": recipe.identity,
        "tools": recipe.tools,
        "architectures": list(recipe.architectures),
        "sha256": sha256(library),
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return library


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_record(library: Path, record: Path) -> dict | None:
    """The record of a finished library, or None where either file is missing or damaged. Loading a
    truncated library can kill the process, so it is checked first."""
    try:
        stated = json.loads(record.read_text())
        intact = isinstance(stated, dict) and stated.get("sha256") == sha256(library)
    except (OSError, ValueError):
        return None
    return stated if intact else None
