"""The DataLoader around a split: batches in the sampler's order, errors in one line."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from fastres.training.data.sampler import EvaluationSampler, Key, TrainSampler
from fastres.training.data.source import Batch, Raw, RawSplit, Split
from fastres.training.errors import DataError, TrainingError


@dataclass(frozen=True)
class _Failure:
    """A DataError on its way out of a worker, which would otherwise wrap it in a traceback."""

    message: str


_STOPPING = (signal.SIGINT, signal.SIGTERM)


class _Batches(Dataset):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitems__(self, keys: Sequence[Key]) -> Batch | Raw | _Failure:
        fetch = self.split.fetch if isinstance(self.split, RawSplit) else self.split.__getitems__
        try:
            return fetch(keys)
        except DataError as error:
            return _Failure(str(error))


def _keep(batch: Batch | Raw | _Failure) -> Batch | Raw | _Failure:
    return batch  # the split has put the batch together already


def _prepare_worker(worker_id: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group: the main process saves and
    # then closes its workers itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


@contextmanager
def _starting_workers() -> Iterator[None]:
    """Workers inherit that these signals wait, until `_prepare_worker` ignores them: one that came
    while a worker was starting would end it, and the run with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Turns the error of a worker process that died, which torch may raise at any place of the main
    process, into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _lost_worker() from None


def _lost_worker() -> TrainingError:
    return TrainingError(
        "a process that loads images died: it was killed or crashed, often for want of memory "
        "or of room in /dev/shm; try fewer --workers"
    )


class Loader:
    """Iterates over a split in the sampler's order; raises DataError as it was raised.

    Gives the split's own batches, or Raw ones where it leaves them to the device.
    """

    def __init__(
        self,
        split: Split,
        sampler: TrainSampler | EvaluationSampler,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.sampler = sampler
        self._loader = DataLoader(
            _Batches(split),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_keep,
            pin_memory=pin_memory,
            worker_init_fn=_prepare_worker,
            persistent_workers=workers > 0,
            # without its own generator every iterator would draw from torch's, and a resumed
            # run, which makes one iterator more, would go another way
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def close(self) -> None:
        """Ends the workers. They ignore SIGTERM, so an exit that left it to that would hang."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()
            self._loader._iterator = None

    def __iter__(self) -> Iterator[Batch | Raw]:
        with _starting_workers():
            batches = iter(self._loader)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, EOFError):  # of the pipe to a worker
                if self._has_lost_a_worker():
                    raise _lost_worker() from None
                raise
            if batch is None:
                return
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch

    def _has_lost_a_worker(self) -> bool:
        workers = getattr(getattr(self._loader, "_iterator", None), "_workers", ())
        for worker in workers:
            worker.join(timeout=1)
        return not all(worker.is_alive() for worker in workers)
