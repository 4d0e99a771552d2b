"""The errors a training command ends with; each carries its exit code."""

from __future__ import annotations


class TrainingError(Exception):
    """A run that cannot go on: full disk, out of memory, a dead rank, a loss that is not finite."""

    exit_code = 1


class UsageError(TrainingError):
    """An argument, a file or a folder the user gave is not what the command needs."""

    exit_code = 2


class DataError(UsageError):
    """A data file or folder is missing, broken, or not what its format promises."""


class CheckpointError(UsageError):
    """A checkpoint is missing, truncated, foreign, or of another network or run."""


class Stopped(TrainingError):
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


def out_of_memory(batch_size: int, processes: int, amp: str) -> str:
    """What was tried when a GPU had no more memory, and what to lower."""
    return (
        f"out of GPU memory with {-(-batch_size // processes)} images of a step on this GPU "
        f"(batch_size {batch_size}, amp {amp}): try --batch-size "
        f"{max(2, batch_size // 2)}" + ("" if amp != "none" else " or --amp bf16")
    )
