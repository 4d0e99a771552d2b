"""What `fastres tune` shows while it measures: rich's bar on a terminal, else lines."""

from __future__ import annotations

import sys
from types import TracebackType


class Lines:
    """A line for each note."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is left on the screen that must be taken away."""

    def doing(self, what: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """A line that stays."""
        print(text, flush=True)

    def finished(self, text: str) -> None:
        """One of `total` tasks is done; `text` says how it ended."""
        self.done += 1
        self.note(f"[{self.done}/{self.total}] {text}")


class Bar(Lines):
    """The same above a progress bar. Raises ImportError without rich."""

    def __init__(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        super().__init__(total)
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._progress.stop()

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def finished(self, text: str) -> None:
        super().finished(text)
        self._progress.advance(self._task)


def progress(total: int) -> Lines:
    """The bar where stdout is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return Bar(total)
        except ImportError:
            pass
    return Lines(total)
