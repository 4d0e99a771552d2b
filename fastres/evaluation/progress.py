"""What `fastres eval` shows while it runs: rich's bar on a terminal, a line at times elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_PERIOD = 30.0  # seconds between two lines


class Lines:
    """A line every `_PERIOD` seconds."""

    def __init__(self, total: int) -> None:
        self.total, self._next = total, time.monotonic() + _PERIOD

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is left on the screen that must be taken away."""

    def update(self, done: int, text: str) -> None:
        """`done` images are behind; `text` says how they went."""
        if time.monotonic() >= self._next:
            print(f"{done}/{self.total} images  {text}", flush=True)
            self._next = time.monotonic() + _PERIOD


class Bar(Lines):
    """A progress bar instead. Raises ImportError without rich."""

    def __init__(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        super().__init__(total)
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._progress.stop()

    def update(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, description=text)


def progress(total: int) -> Lines:
    """The bar where stdout is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return Bar(total)
        except ImportError:
            pass
    return Lines(total)
