"""Named training recipes: every constant with where it is from. Options override them.

A recipe is a module here with SUMMARY, CONSTANTS (option of a run -> value and source) and NOTES
(what is no option). Sections are those of "Deep Residual Learning for Image Recognition"
(arXiv 1512.03385) where nothing else is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fastres.training.errors import UsageError

NAMES = ("imagenet", "cifar10", "modern", "digits")


@dataclass(frozen=True)
class Recipe:
    """`constants` maps options of TrainConfig to (value, source); `notes` are lines of text."""

    name: str
    summary: str
    constants: dict[str, tuple[Any, str]]
    notes: tuple[str, ...]

    def values(self) -> dict[str, Any]:
        """The options alone."""
        return {option: value for option, (value, _) in self.constants.items()}


def get(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError if there is none."""
    if name not in NAMES:
        raise UsageError(f"recipe must be one of {', '.join(NAMES)}, got {name!r}")
    module = import_module(f"fastres.training.recipes.{name}")
    return Recipe(name, module.SUMMARY, module.CONSTANTS, module.NOTES)
