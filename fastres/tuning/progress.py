"""What `fastres tune` shows while it measures: rich's bar on a terminal, else lines."""

from __future__ import annotations

from .._progress import RichBar, Shown, shown


class Lines(Shown):
    """A line for each note."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def doing(self, what: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """A line that stays."""
        print(text, flush=True)

    def finished(self, text: str) -> None:
        """One of `total` tasks is done; `text` says how it ended."""
        self.done += 1
        self.note(f"[{self.done}/{self.total}] {text}")


class Bar(RichBar, Lines):
    """The same above a progress bar. Raises ImportError without rich."""

    def __init__(self, total: int) -> None:
        RichBar.__init__(self, total)
        Lines.__init__(self, total)

    def doing(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def finished(self, text: str) -> None:
        super().finished(text)
        self._progress.advance(self._task)


def progress(total: int) -> Lines:
    """The bar where stdout is a terminal and rich is installed, else lines."""
    return shown(Bar, Lines, total)
