"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from fastres.training.errors import UsageError

_PLAIN_PERIOD = 30.0  # seconds between two lines inside a long epoch


def epoch_line(row: dict[str, Any], epochs: int, held_out_name: str) -> str:
    """One epoch in one line."""
    averaged = "" if row["ema_top1"] is None else f"averaged {row['ema_top1']:.2f}%  "
    skipped = f", broken images skipped: {row['skipped']}" if row["skipped"] else ""
    return (
        f"epoch {row['epoch']}/{epochs}  lr {row['lr']:.4g}  train loss {row['train_loss']:.4f}  "
        f"train {row['train_top1']:.2f}%  {held_out_name} loss {row['loss']:.4f}  "
        f"{held_out_name} {row['top1']:.2f}%  {averaged}{row['images_per_second']:.0f} images/s, "
        f"{100 * row['input_share']:.0f}% of it waiting for input{skipped}"
    )


class Silent:
    """Nothing: for every process but the first."""

    def note(self, text: str) -> None:
        """A line for the person."""

    def start_epoch(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Training of an epoch begins at `step`."""

    def step(self, done: int, loss: float | None) -> None:
        """`done` steps of the epoch are behind; `loss` where it was read."""

    def end_epoch(self) -> None:
        """The epoch's steps are done."""

    def close(self) -> None:
        """The run is over."""


class Lines(Silent):
    """Plain lines, for a file or a pipe."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._label, self._steps, self._next = "", 0, 0.0

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def start_epoch(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        self._label, self._steps = f"epoch {epoch}/{epochs}", steps
        self._next = time.monotonic() + _PLAIN_PERIOD

    def step(self, done: int, loss: float | None) -> None:
        if loss is not None and time.monotonic() >= self._next:
            self.note(f"{self._label}  step {done}/{self._steps}  loss {loss:.4f}")
            self._next = time.monotonic() + _PLAIN_PERIOD


class Bar(Silent):
    """rich's progress bar, with the notes above it."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            transient=True,
        )
        self._task: Any = None

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start_epoch(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(
            f"epoch {epoch}/{epochs}", total=steps, completed=step, loss="-"
        )

    def step(self, done: int, loss: float | None) -> None:
        shown = {} if loss is None else {"loss": f"{loss:.4f}"}
        self._progress.update(self._task, completed=done, **shown)

    def end_epoch(self) -> None:
        self._progress.remove_task(self._task)

    def close(self) -> None:
        self._progress.stop()


def make_reporter(is_main: bool) -> Silent:
    """The bar where stdout is a terminal and rich is installed, else lines; silence off rank 0."""
    if not is_main:
        return Silent()
    if not sys.stdout.isatty():
        return Lines()
    try:
        return Bar()
    except ImportError:
        return Lines()


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table on stdout through rich."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise UsageError(f"tables need rich: pip install 'fastres[progress]' ({error})") from None
    table = Table(*columns, title=title)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
