"""Batches on the device, finished, the next on its way while one is used; and the time waited."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from fastres.training.data.loader import Loader
from fastres.training.data.sampler import EvaluationSampler, TrainSampler
from fastres.training.data.source import Batch, Raw, RawSplit, Split


class Feed:
    """Iterates over a split as float32 images and labels on `device`.

    On a GPU, bytes go from pinned memory through a stream of their own, on which they are also
    finished, one batch ahead of the one that is used.

    `waited` counts the seconds since `start_count` that the next batch was waited for: on a CPU
    the whole time the batch took, on a GPU only if the device had run out of work by its arrival,
    so it is an upper bound there. `skipped` holds the names of images that could not be read, one
    for each time.
    """

    def __init__(
        self,
        split: Split,
        sampler: TrainSampler | EvaluationSampler,
        workers: int,
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self.sampler, self.device, self.layout = sampler, device, layout
        on_gpu = device.type == "cuda"
        self._loader = Loader(split, sampler, workers, pin_memory=on_gpu)
        self._finish = split.finisher(device, layout) if isinstance(split, RawSplit) else None
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        if on_gpu:  # what finishes batches was made on the current stream
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self.start_count()

    def start_count(self) -> None:
        """Sets `waited` and `skipped` back."""
        self.waited = 0.0
        self.skipped: list[str] = []

    def close(self) -> None:
        """Ends the processes that load images."""
        self._loader.close()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        if self._stream is None:
            batches = ((self._place(batch), batch) for batch in self._loader)
        else:
            batches = self._prefetch()
        done = None if self._stream is None else torch.cuda.Event()
        while True:
            if done is not None:
                # the step on the batch before has been queued by now
                done.record(torch.cuda.current_stream(self.device))
            started = time.perf_counter()
            placed, batch = next(batches, (None, None))
            if done is None or done.query():
                self.waited += time.perf_counter() - started
            if placed is None:
                return
            if isinstance(batch, Raw):
                self.skipped += batch.skipped
            if len(placed[1]):  # of a test batch, all may be broken
                yield placed

    def _prefetch(self) -> Iterator[tuple[Batch, Batch | Raw]]:
        """The GPU's batches, each handed out when the one after it is on its way."""
        ahead = None
        for batch in self._loader:
            with torch.cuda.stream(self._stream):
                placed = self._place(batch)
            arrived = self._stream.record_event()
            if ahead is not None:
                yield self._arrive(*ahead)
            ahead = placed, batch, arrived
        if ahead is not None:
            yield self._arrive(*ahead)

    def _arrive(
        self, placed: Batch, batch: Batch | Raw, arrived: torch.cuda.Event
    ) -> tuple[Batch, Batch | Raw]:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        for tensor in placed:  # made on the other stream: its memory must not be reused too early
            tensor.record_stream(current)
        return placed, batch

    def _place(self, batch: Batch | Raw) -> Batch:
        if isinstance(batch, Raw):
            images, labels, draws, skipped = batch
            moved = {name: self._move(tensor) for name, tensor in draws.items()}
            labels = self._move(labels)
            return self._finish(Raw(self._move(images), labels, moved, skipped)), labels
        images, labels = batch
        images = images.to(self.device, non_blocking=True, memory_format=self.layout)
        return images, self._move(labels)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)
