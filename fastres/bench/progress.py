"""What a sweep is doing: a bar where there is a terminal, else a line for each case."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO


class Progress:
    """Shown on `file`: a rich bar on a terminal that has rich, else plain lines.

    Args:
        total: cases of the sweep.
        file: stderr by default, so that a table on stdout stays alone.
    """

    def __init__(self, total: int, file: TextIO | None = None) -> None:
        self._total, self._file = total, file or sys.stderr
        self._started = time.monotonic()
        self._bar = self._task = None
        if self._file.isatty():
            self._bar = _bar(self._file)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, name: str, done: int, seconds: float | None) -> None:
        """A case begins, after `done` others, with so many seconds."""
        self._started = time.monotonic()
        self._name, self._done = name, done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=name)
        else:
            time_left = "" if seconds is None else f", {seconds:.0f} s"
            self._line(f"[{done + 1}/{self._total}] {name}{time_left}")

    def event(self, kind: str, doing: str, *content: object) -> None:
        """The case goes on: what it does, and in a round its number and how many there are."""
        if self._bar is None:
            if kind == "preparing":
                self._line(f"    {doing}")
            return
        part = content[0] / content[1] if kind == "round" else 0.0
        self._bar.update(
            self._task, completed=self._done + part, description=f"{self._name}: {doing}"
        )

    def finish(self, name: str, table: Sequence[Sequence[str]]) -> None:
        """The case ended with these rows."""
        took = time.monotonic() - self._started
        text = ", ".join(f"{row[0]} {row[1]}" for row in table)
        self._line(f"    {text} ({took:.0f} s)" if self._bar is None else f"{name}: {text}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done + 1)

    def skip(self, name: str, reason: str) -> None:
        """The case is not begun."""
        self._line(f"{name}: not reached, {reason}")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._file.write(text + "\n")
            self._file.flush()


def _bar(file: TextIO):
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    return Bar(*columns, console=Console(file=file), transient=True)
