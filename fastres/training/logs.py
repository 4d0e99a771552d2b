"""Records of a run: CSV files that a resumed run continues, and TensorBoard events."""

from __future__ import annotations

import csv
import io
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fastres.training.errors import TrainingError, UsageError

EPOCH_COLUMNS = (
    "epoch", "iteration", "lr", "train_loss", "train_top1", "loss", "top1", "top5",
    "seconds", "images_per_second", "input_share", "skipped", "ema_loss", "ema_top1", "ema_top5",
)  # fmt: skip
STEP_COLUMNS = ("iteration", "epoch", "lr", "loss")


class CsvLog:
    """A CSV file of one header line and appended rows; numbers are written so they read back equal.

    With `position`, a byte count from an earlier run's checkpoint, what was written after it is
    cut off and the file goes on from there; without, the file starts anew.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], position: int | None = None) -> None:
        self.path, self.columns = path, columns
        resume = position is not None and path.exists()
        try:
            # unbuffered: what a full disk refused must not be tried again when the file is closed
            self._file = open(path, "r+b" if resume else "wb", buffering=0)  # noqa: SIM115
            if resume:
                # a machine that went down may have lost the file's end: never grow it with zeros
                self._file.truncate(min(position, path.stat().st_size))
                self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise TrainingError(f"cannot write {path}: {error.strerror}") from None
        if not resume:
            self._write(columns)

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row. Raises TrainingError when the disk is full."""
        self._write(tuple(row[column] for column in self.columns))

    def _write(self, values: tuple[Any, ...]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        line = text.getvalue().encode()
        try:
            while line:  # a disk that is nearly full may take a part
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.close()
            raise TrainingError(f"cannot write {self.path}: {error.strerror}") from None

    def position(self) -> int:
        """Bytes so far, on the disk for certain: a checkpoint may rely on them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}") from None
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class RunLog:
    """The records of one run in its folder: epochs.csv, steps.csv and, if wanted, TensorBoard.

    `positions` is what `RunLog.positions` gave when the checkpoint the run goes on from was saved.
    """

    def __init__(
        self, folder: Path, positions: dict[str, int], iteration: int, tensorboard: bool
    ) -> None:
        self._csv: dict[str, CsvLog] = {}
        self._board: Any = None
        with ExitStack() as stack:  # closes what is open if something cannot be opened
            stack.callback(self.close)
            for name, columns in (("epochs.csv", EPOCH_COLUMNS), ("steps.csv", STEP_COLUMNS)):
                self._csv[name] = CsvLog(folder / name, columns, positions.get(name))
            if tensorboard:
                # events after the checkpoint are replaced, as the CSV rows are
                self._board = _open_board(folder / "tensorboard", iteration + 1)
            stack.pop_all()

    def step(self, row: dict[str, Any]) -> None:
        """One row of STEP_COLUMNS."""
        self._csv["steps.csv"].append(row)
        self._scalars({"train/loss_step": row["loss"], "train/lr": row["lr"]}, row["iteration"])

    def epoch(self, row: dict[str, Any], held_out_name: str) -> None:
        """One row of EPOCH_COLUMNS."""
        self._csv["epochs.csv"].append(row)
        values = {"train/loss": row["train_loss"], "train/top1": row["train_top1"]}
        values |= {f"{held_out_name}/{column}": row[column] for column in ("loss", "top1", "top5")}
        if row["ema_top1"] is not None:
            values |= {
                f"{held_out_name}/ema_{part}": row[f"ema_{part}"] for part in ("loss", "top1")
            }
        self._scalars(values, row["iteration"])

    def positions(self) -> dict[str, int]:
        """Bytes of each CSV file that are on the disk now."""
        return {name: log.position() for name, log in self._csv.items()}

    def close(self) -> None:
        for log in self._csv.values():
            log.close()
        if self._board is not None:
            with suppress(OSError):  # said before, or by the checkpoint; the CSV files have it all
                self._board.close()

    def _scalars(self, values: dict[str, float], iteration: int) -> None:
        if self._board is None:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)
        except OSError as error:  # of an earlier write, in the writer's thread
            raise TrainingError(f"cannot write TensorBoard's events: {error.strerror}") from None


def _open_board(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            f"tensorboard logs need tensorboard: pip install 'fastres[logs]' ({error})"
        ) from None
    return SummaryWriter(log_dir=str(folder), purge_step=purge_step)
