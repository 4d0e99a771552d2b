"""`fastres report`: results files as a page, pictures, the README's table and CSV."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...training.errors import TrainingError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastres report`."""
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULTS",
        help="files that fastres bench and fastres profile wrote, or folders of them",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write its figures as pictures")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row an implementation")
    parser.add_argument(
        "--readme", type=Path, nargs="?", const=Path("README.md"), metavar="FILE",
        help="rewrite the table between the marks of these files, and the picture after it "
        "(README.md)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Read the files and write what was asked for.

    Raises:
        UsageError: a file is not a results file, nothing was asked for, the README has no marks
            for the files, or matplotlib is needed and not installed.
        TrainingError: a file cannot be written.
    """
    if not any((args.html, args.png, args.csv, args.readme)):
        raise UsageError("nothing to write: give --html, --png, --csv or --readme")
    from . import load

    found = load.read(args.results)
    try:
        for path in _write(args, found):
            sys.stdout.write(f"wrote {path}\n")
    except OSError as error:
        raise TrainingError(f"cannot write {error.filename}: {error.strerror}") from None
    return 0


def _write(args: argparse.Namespace, found) -> list[Path]:
    from .. import results

    written = []
    if args.html is not None:
        from .page import page

        results.replace(args.html, page(found))
        written.append(args.html)
    if args.csv is not None:
        from .export import rows

        results.replace(args.csv, rows(found))
        written.append(args.csv)
    if args.png is not None:
        from .pictures import write

        written += write(found, args.png)
    if args.readme is not None:
        from . import readme

        written += readme.update(args.readme, args.results)
    return written
