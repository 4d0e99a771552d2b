"""What a person sees of an experiment: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

_PLAIN_PERIOD = 30.0  # seconds between two lines about runs that go on


class Progress:
    """Plain lines, for a file or a pipe."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._total = self._done = 0
        self._now: dict[str, str] = {}
        self._next = 0.0

    def note(self, text: str) -> None:
        """A line for the person."""
        print(text, file=self._stream, flush=True)

    def begin(self, total: int, done: int) -> None:
        """The experiment has `total` runs, of which `done` are finished already."""
        self._total, self._done = total, done
        if done:
            self.note(f"{done} of {total} runs are finished already")
        self._next = time.monotonic() + _PLAIN_PERIOD

    def start(self, name: str) -> None:
        """A run starts, or goes on."""
        self._now[name] = "starting"

    def take(self, name: str, message: dict[str, Any]) -> None:
        """What a run reported, see `one_run.run_to_end`."""
        if "iteration" in message:
            self._now[name] = (
                f"iteration {message['iteration']} of {message['total']}, "
                f"loss {message['loss']:.3f}"
            )
        self.tick()

    def tick(self) -> None:
        """Time has passed."""
        if self._now and time.monotonic() >= self._next:
            self.note("; ".join(f"{name}: {words}" for name, words in self._now.items()))
            self._next = time.monotonic() + _PLAIN_PERIOD

    def finish(self, name: str) -> None:
        """A run has reached its end."""
        self._done += 1
        self._now.pop(name, None)
        self.note(f"{self._done} of {self._total}: {name} is finished")

    def close(self) -> None:
        """No more runs."""


class Bars(Progress):
    """rich's bars: one for the experiment and one for each run that goes on."""

    def __init__(self) -> None:
        super().__init__()
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._all: Any = None

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, total: int, done: int) -> None:
        super().begin(total, done)
        self._bars.start()
        self._all = self._bars.add_task("runs", total=total, completed=done, words="")

    def start(self, name: str) -> None:
        self._tasks[name] = self._bars.add_task(name, total=None, words="starting")

    def take(self, name: str, message: dict[str, Any]) -> None:
        if "iteration" in message:
            self._bars.update(
                self._tasks[name],
                completed=message["iteration"],
                total=message["total"],
                words=f"loss {message['loss']:.3f}",
            )

    def tick(self) -> None:
        """The bars' own thread keeps them moving."""

    def finish(self, name: str) -> None:
        self._bars.remove_task(self._tasks.pop(name))
        super().finish(name)
        self._bars.update(self._all, completed=self._done)

    def close(self) -> None:
        self._bars.stop()


def make_progress() -> Progress:
    """Bars where stdout is a terminal and rich is installed, else lines."""
    if not sys.stdout.isatty():
        return Progress()
    try:
        return Bars()
    except ImportError:
        return Progress()
