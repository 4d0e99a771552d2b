"""Imports go one way: models -> layers -> functional -> autograd -> backends -> kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# higher imports lower; a package may import itself, and packages of one rank not each other
RANKS = {
    "cli": 10,
    "_public": 8,
    "experiments": 9,
    "tuning": 9,
    "evaluation": 9,
    "bench": 8,
    "training": 7,
    "explain": 7,
    "auto": 7,
    "inference": 7,
    "interop": 6,
    "models": 6,
    "layers": 5,
    "functional": 4,
    "autograd": 3,
    "backends": 2,
    "kernels": 1,
}
# imported from everywhere, so they import nothing but each other
LEAVES = {"_checks", "_imports", "_progress", "extension", "version"}
# tells about all of it, and is imported by the command line only
RANKS["info"] = RANKS["cli"] - 1


def package_of(path: Path, root: Path) -> str | None:
    """The part of fastres a file belongs to; None for the public names in fastres/__init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "kernels":
        return "kernels"
    return None if parts[1] in ("__init__", "__main__") else parts[1]


def module_of(path: Path, root: Path) -> list[str]:
    """Dotted name of the package that relative imports in `path` start from, as a list."""
    parts = list(path.relative_to(root).with_suffix("").parts[:-1])
    return ["fastres", *parts] if parts[0] == "kernels" else parts


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, dotted name as a list) of everything imported anywhere in a file, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, [*base, alias.name]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                name = node.args[0].value
                level = len(name) - len(name.lstrip("."))
                base = package[: len(package) - level + 1] if level else []
                yield node.lineno, [*base, *name.lstrip(".").split(".")]


def violations(path: Path, root: Path) -> list[str]:
    """What `path` imports from above it, one line of text each."""
    own = package_of(path, root)
    if own is None:
        return []
    found = []
    for line, name in imported(ast.parse(path.read_text()), module_of(path, root)):
        if name[0] == "kernels":
            found.append(f"{path.name}:{line}: kernels is imported as fastres.kernels")
        if name[0] != "fastres" or name[1:2] == [own]:
            continue
        target = name[1] if len(name) > 1 else None
        if target in LEAVES:
            continue
        if target not in RANKS:
            # a public name, so fastres/__init__.py, which is above everything but the tools
            if RANKS.get(own, 0) <= RANKS["models"]:
                found.append(f"{path.name}:{line}: {own} imports {'.'.join(name)}")
        elif RANKS.get(own, 0) <= RANKS[target]:
            found.append(f"{path.name}:{line}: {own} imports {'.'.join(name)}")
    return found


def sources() -> list[Path]:
    return sorted([*(ROOT / "fastres").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def test_every_package_has_a_rank():
    packages = {package_of(path, ROOT) for path in sources()} - {None}
    assert packages - set(RANKS) - LEAVES == set()
    assert {"models", "layers", "functional", "autograd", "backends", "kernels"} <= packages


def test_nothing_imports_upward():
    assert [line for path in sources() for line in violations(path, ROOT)] == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("fastres/layers/bad.py", "from ..models import registry"),
        ("fastres/layers/bad.py", "from .. import models"),
        ("fastres/layers/bad.py", "import fastres.models.registry"),
        ("fastres/functional.py", "from .layers import BasicBlock"),
        ("fastres/functional.py", "from fastres import layers"),
        ("fastres/autograd/bad.py", "def f():\n    from .. import functional"),
        ("fastres/autograd/bad.py", "import importlib\nimportlib.import_module('fastres.layers')"),
        ("fastres/autograd/bad.py", "import importlib\nimportlib.import_module('..layers')"),
        ("fastres/backends/bad.py", "from ..autograd.conv2d import Conv2d"),
        ("fastres/backends/bad.py", "import kernels"),
        ("fastres/backends/deep/bad.py", "from ...autograd import Conv2d"),
        ("fastres/models/bad.py", "from fastres import resnet50"),
        ("fastres/models/bad.py", "import fastres"),
        ("fastres/training/bad.py", "from fastres import cli"),
        ("fastres/extension/bad.py", "from fastres import backends"),
        ("kernels/bad.py", "from fastres import backends"),
        ("kernels/bad.py", "from .. import backends"),
        ("kernels/configs/bad.py", "from ... import backends"),
    ],
)
def test_a_violation_is_found(tmp_path, where, line):
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(violations(path, tmp_path)) == 1


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("fastres/__init__.py", "from .models import resnet50"),
        ("fastres/models/good.py", "from ..layers import BasicBlock\nfrom .registry import create"),
        ("fastres/layers/good.py", "from .. import functional\nimport torch.nn.functional"),
        ("fastres/functional.py", "from ._checks import pair\nfrom .autograd import Conv2d"),
        ("fastres/backends/good.py", "from .. import extension\nfrom fastres.kernels import x"),
        ("fastres/training/good.py", "import fastres\nfrom fastres import models"),
        ("kernels/good.py", "from . import configs\nimport triton"),
    ],
)
def test_a_proper_import_is_not(tmp_path, where, line):
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert violations(path, tmp_path) == []
