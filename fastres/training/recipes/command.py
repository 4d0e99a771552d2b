"""`fastres recipes`: lists the training recipes, or prints one with its sources."""

from __future__ import annotations

import argparse
import textwrap

from fastres.training import recipes

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe to print."""
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(recipes.NAMES))


def main(args: argparse.Namespace) -> int:
    """Prints and returns 0. Raises UsageError for a name that is none."""
    if args.name is None:
        for name in recipes.NAMES:
            print(f"{name:10s} {recipes.get(name).summary}")
        print("\nfastres recipes NAME prints one; fastres train --recipe NAME trains by it")
        return 0
    print(describe(recipes.get(args.name)))
    return 0


def describe(recipe: recipes.Recipe) -> str:
    """The recipe as a table of option, value and source, and its notes."""
    rows = [(option_of(name), _text(value), why) for name, (value, why) in recipe.constants.items()]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{recipe.name}: {recipe.summary}", ""]
    indent = " " * (sum(wide) + 4)
    for option, value, why in rows:
        start = f"{option:{wide[0]}s}  {value:{wide[1]}s}  "
        lines += textwrap.wrap(why, _WIDTH, initial_indent=start, subsequent_indent=indent)
    lines.append("")
    for note in recipe.notes:
        lines += textwrap.wrap(note, _WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def option_of(name: str) -> str:
    """The command's option for a name of TrainConfig."""
    return "--" + name.replace("_", "-")


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
