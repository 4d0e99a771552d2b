"""What is shown while a command works: rich's bar on a terminal that can have one, else lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

_Shown = TypeVar("_Shown")


class Shown:
    """Something that is there during a `with`. Lines leave nothing that must be taken away."""

    def __enter__(self: _Shown) -> _Shown:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes it off the screen."""


class RichBar(Shown):
    """A bar with a description and times, gone at the end. Raises ImportError without rich."""

    def __init__(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            transient=True,
        )
        self._task: Any = self._progress.add_task("", total=total)

    def __enter__(self: _Shown) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._progress.stop()


def shown(bar: Callable[[int], _Shown], lines: Callable[[int], _Shown], total: int) -> _Shown:
    """The bar where stdout is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return bar(total)
        except ImportError:
            pass
    return lines(total)
