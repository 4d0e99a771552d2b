"""A training step of the fused network beside the plain one's, measured in turns."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import nn

from fastres import models

_WARM_UP = 3  # steps of each before the first that counts


@dataclass(frozen=True)
class StepTimes:
    """Seconds of single training steps, in the order they were taken."""

    fused: list[float]
    reference: list[float]

    @property
    def speedup(self) -> float:
        """Reference time over fused time, of the medians."""
        return median(self.reference) / median(self.fused)


def spread(times: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = quantiles(times, n=4)
    return low, middle, high


def measure_step(
    name: str, batch_size: int, image_size: int, device: torch.device, rounds: int
) -> StepTimes:
    """Forward, loss, backward and SGD step of network `name`, fp32, channels_last, both ways.

    One step of each in turn, the first of a pair changing every round, so that whatever else the
    machine does falls on both.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
    images = images.to(device, memory_format=torch.channels_last)
    labels = (torch.arange(batch_size) % 10).to(device)
    plain = models.create(name, fused=False)
    fused = models.create(name, fused=True)
    fused.load_state_dict(plain.state_dict())
    contestants = {"fused": _Step(fused, device), "reference": _Step(plain, device)}
    times: dict[str, list[float]] = {"fused": [], "reference": []}
    for turn in range(-_WARM_UP, rounds):
        order = list(contestants) if turn % 2 else list(reversed(contestants))
        for key in order:
            seconds = contestants[key].time(images, labels)
            if turn >= 0:
                times[key].append(seconds)
    return StepTimes(times["fused"], times["reference"])


class _Step:
    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
        )
        self.device = device

    def time(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        self._wait()
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
