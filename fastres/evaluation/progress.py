"""What `fastres eval` shows while it runs: rich's bar on a terminal, a line at times elsewhere."""

from __future__ import annotations

import time

from fastres._progress import RichBar, Shown, shown

_PERIOD = 30.0  # seconds between two lines


class Lines(Shown):
    """A line every `_PERIOD` seconds."""

    def __init__(self, total: int) -> None:
        self.total, self._next = total, time.monotonic() + _PERIOD

    def update(self, done: int, text: str) -> None:
        """`done` images are behind; `text` says how they went."""
        if time.monotonic() >= self._next:
            print(f"{done}/{self.total} images  {text}", flush=True)
            self._next = time.monotonic() + _PERIOD


class Bar(RichBar, Lines):
    """A progress bar instead. Raises ImportError without rich."""

    def update(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, description=text)


def progress(total: int) -> Lines:
    """The bar where stdout is a terminal and rich is installed, else lines."""
    return shown(Bar, Lines, total)
