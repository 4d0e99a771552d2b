"""What the tests of this folder show, as a table: `python tests/interop/works_with.py --write`.

A test that shows that fused networks work with something says so by `@works_with("something")`.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "works_with.md"
HEAD = """# Works with

Each row is a test of a fused network of torchvision's, timm's or fastres's own. The table is made
from the tests: `python tests/interop/works_with.py --write`.

| works with | test |
|---|---|
"""

Test = TypeVar("Test", bound=Callable)


def works_with(what: str) -> Callable[[Test], Test]:
    """Mark a test as the evidence for a row of the table."""
    assert what, "the row needs a name"
    return lambda test: test


class Row(NamedTuple):
    """What works, and the test that shows it."""

    what: str
    file: str
    test: str


def rows(folder: Path = ROOT / "tests" / "interop") -> Iterator[Row]:
    """The marked tests, in the order of files and lines."""
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "works_with":
                    yield Row(ast.literal_eval(mark.args[0]), path.name, node.name)


def page() -> str:
    """The page as it must stand in docs."""
    lines = [
        f"| {row.what} | [{row.file}](../tests/interop/{row.file}) `{row.test}` |" for row in rows()
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
