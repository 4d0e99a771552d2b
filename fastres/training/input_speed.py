"""Whether the input pipeline keeps up with the training step: each alone, and both together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch

from fastres.training.data.source import Batch
from fastres.training.engine import Trainer
from fastres.training.errors import UsageError

_WARM_UP = 3  # steps before the first that counts


@dataclass(frozen=True)
class InputSpeed:
    """Seconds for a batch of `images` images, medians over `steps` of them.

    Attributes:
        input: the pipeline alone, to finished batches on the device.
        input_cpu: processor time of this process in it, workers not included.
        step: the training step alone, always on the same batch.
        step_cpu: processor time of this process in that, over all its threads.
        together: both, as in a run.
        waiting: the share of `together` spent waiting for a batch.
    """

    images: int
    steps: int
    input: float
    input_cpu: float
    step: float
    step_cpu: float
    together: float
    waiting: float

    def lines(self) -> list[str]:
        """The measurement in words."""
        rows = (("input alone", self.input), ("step alone", self.step), ("both", self.together))
        out = [
            f"{name:12s}{1000 * seconds:10.2f} ms a batch{self.images / seconds:12.0f} images/s"
            for name, seconds in rows
        ]
        return [*out, self.verdict()]

    def verdict(self) -> str:
        """Whether it keeps up, or by how much it does not."""
        share = f"{100 * self.waiting:.1f}% of a step is spent waiting for input"
        if self.waiting < 0.1:
            return f"the input pipeline keeps up: {share}"
        longer = f"{self.together / self.step:.2f} times as long as without"
        return f"the input pipeline does not keep up: {share}, a step takes {longer}; see --workers"


def measure_input(trainer: Trainer, steps: int) -> InputSpeed:
    """Measures with a trainer's own pipeline and step; it trains the network and writes nothing.

    Batches smaller than the first, an epoch's last, are left out of the medians.
    Raises UsageError if an epoch holds too few steps to measure any.
    """
    if trainer.steps_per_epoch < 2:
        raise UsageError("the input is measured over steps of an epoch, and this data has only 1")
    try:
        batches = _endless(trainer)
        size = len(next(batches)[1])

        def fetch() -> Batch:
            return _full(batches, size)

        list(islice(iter(fetch, None), _WARM_UP))
        inputs = [_timed(trainer.device, fetch) for _ in range(steps)]
        batch = fetch()
        walls: list[tuple[float, float]] = []
        for number in range(-_WARM_UP, steps):
            taken = _timed(trainer.device, lambda: _step(trainer, batch))
            if number >= 0:
                walls.append(taken)
        feed = trainer._train_loader
        feed.start_count()
        _wait(trainer.device)
        started = time.perf_counter()
        for _ in range(steps):
            _step(trainer, fetch())
        _wait(trainer.device)
        together = time.perf_counter() - started
        return InputSpeed(
            images=size,
            steps=steps,
            input=median(wall for wall, _ in inputs),
            input_cpu=median(cpu for _, cpu in inputs),
            step=median(wall for wall, _ in walls),
            step_cpu=median(cpu for _, cpu in walls),
            together=together / steps,
            waiting=feed.waited / together,
        )
    finally:
        trainer._train_loader.close()


def _step(trainer: Trainer, batch: Batch) -> None:
    trainer.progress.step = 0  # every batch is a full one
    trainer._step(*batch)


def _endless(trainer: Trainer) -> Iterator[Batch]:
    epoch = 0
    while True:
        trainer.sampler.seek(epoch, 0)
        yield from trainer._train_loader
        epoch += 1


def _full(batches: Iterator[Batch], size: int) -> Batch:
    while True:
        batch = next(batches)
        if len(batch[1]) == size:
            return batch


def _timed(device: torch.device, work) -> tuple[float, float]:
    """Seconds and processor seconds."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
