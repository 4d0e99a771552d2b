"""A test of one network or an ensemble: every image's views through every network, counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from fastres.evaluation import batches
from fastres.evaluation.images import Images
from fastres.evaluation.metrics import Tally
from fastres.evaluation.progress import progress
from fastres.evaluation.protocols import Protocol
from fastres.evaluation.scores import Scorer
from fastres.training.data.loader import naming_lost_workers
from fastres.training.errors import DataError, TrainingError


@dataclass
class Outcome:
    """What a test found. `members` has a tally for each network of an ensemble, else none.

    skipped: what was said of the images that could not be read. network_seconds: per image in the
    networks, all views, for each batch; seconds: of the whole test, loading included.
    """

    tally: Tally
    members: list[Tally]
    skipped: list[str] = field(default_factory=list)
    network_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def milliseconds_per_image(self) -> float:
        """Median over the batches; the first, which warms up, counts only if it is the only one."""
        return 1e3 * median(self.network_seconds[1:] or self.network_seconds)


def run(
    images: Images,
    protocol: Protocol,
    scorers: Sequence[Scorer],
    average: str,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    skip_broken: bool,
) -> Outcome:
    """Tests the mean of the scorers' outputs on all images.

    Raises:
        DataError: an image cannot be read and `skip_broken` is not set, or none can.
        TrainingError: out of GPU memory, an output is not finite, or a loading process died.
    """
    num_classes = scorers[0].network.num_classes
    members = [Tally(num_classes) for _ in scorers] if len(scorers) > 1 else []
    outcome = Outcome(Tally(num_classes), members)

    def broken(message: str) -> None:
        if not skip_broken:
            raise DataError(f"{message}; --skip-broken leaves such images out and counts them")
        outcome.skipped.append(message)

    started = time.perf_counter()
    with naming_lost_workers(), progress(len(images)) as bar:
        for batch in batches.load(images, protocol, batch_size, workers, broken):
            _score(batch, scorers, average, device, outcome)
            done = outcome.tally.images
            bar.update(done + len(outcome.skipped), f"top-1 {outcome.tally.top1.percent:.2f}%")
    outcome.seconds = time.perf_counter() - started
    if not outcome.tally.images:
        what = "there are none" if not outcome.skipped else "none of them can be read"
        raise DataError(f"{images.description}: no image was tested, {what}")
    return outcome


def _score(
    batch: batches.Batch,
    scorers: Sequence[Scorer],
    average: str,
    device: torch.device,
    outcome: Outcome,
) -> None:
    labels = batch.labels
    try:
        views = [view.to(device) for view in batch.views]
        _wait(device)
        started = time.perf_counter()
        outputs = [scorer(views) for scorer in scorers]
        _wait(device)
    except torch.OutOfMemoryError:
        height, width = max((tuple(view.shape[-2:]) for view in batch.views), key=sum)
        raise TrainingError(
            f"out of GPU memory with {len(labels)} images of {height}x{width}: "
            f"try --batch-size {max(1, len(labels) // 2)}"
        ) from None
    outcome.network_seconds.append((time.perf_counter() - started) / len(labels))
    outputs = [output.cpu() for output in outputs]
    for tally, output in zip(outcome.members, outputs, strict=False):
        tally.add(output, labels, average)
    outcome.tally.add(torch.stack(outputs).mean(0), labels, average)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
