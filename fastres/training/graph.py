"""The whole training step as one CUDA graph: forward, loss, backward and optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fastres.training.errors import TrainingError, UsageError

# steps before the capture: libraries choose algorithms, kernels compile, the scaler allocates
WARM_UP = 3

Step = Callable[[Tensor, Tensor], Tensor]


class Graphs(Protocol):
    """What runs work aside and captures it."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do `work` where nothing of it stays behind that a capture would trip over."""

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record `work` without doing it; a call of what is returned does it."""


class CudaGraphs:
    """`Graphs` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], object]) -> None:
        # the default stream is one that cannot be captured, nor what was first used on it
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            work()
        current.wait_stream(self._side)

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that pins the next batch's memory goes on meanwhile
        mode = "thread_local"
        with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode=mode):
            work()
        return graph.replay


def cuda_graphs(device: torch.device, processes: int) -> CudaGraphs:
    """Raises UsageError where a step cannot be captured."""
    if device.type != "cuda":
        raise UsageError(f"cuda_graph needs a GPU, device is {device}: leave out --cuda-graph")
    if processes > 1:
        raise UsageError(
            f"cuda_graph captures the step of one process, got {processes} processes: "
            "leave out --cuda-graph"
        )
    return CudaGraphs(device)


class GraphedStep:
    """A training step that is captured once it has been done a few times, and then replayed.

    Every call does one step and no step is done twice: the warm-up consists of real steps. A batch
    of another size, such as an epoch's last, is stepped on as it comes.

    Args:
        step: takes images and labels on the device and returns the loss. What it changes must stay
            where it is in memory, and nothing in it may depend on numbers of the host that change.
        place: brings images to the device, as `step` expects them.
        batch_size: images of the batches that are captured.
        graphs: captures.
    """

    def __init__(
        self, step: Step, place: Callable[[Tensor], Tensor], batch_size: int, graphs: Graphs
    ) -> None:
        self._step, self._place, self._graphs = step, place, graphs
        self._batch_size = batch_size
        self._warmed = 0
        self._images: Tensor | None = None
        self._labels: Tensor | None = None
        self._loss: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; the loss is only valid until the next one.

        Raises:
            TrainingError: the step cannot be captured.
        """
        if len(labels) != self._batch_size:
            placed = self._place(images)
            return self._step(placed, labels.to(placed.device, non_blocking=True))
        self._fill(images, labels)
        if self._warmed < WARM_UP:
            self._warmed += 1
            self._graphs.warm_up(self._work)
            return self._loss
        if self._replay is None:
            self._replay = self._capture()
        self._replay()
        return self._loss

    def _fill(self, images: Tensor, labels: Tensor) -> None:
        """Put a batch where the graph reads it."""
        if self._images is None:
            placed = self._place(images)
            self._images = torch.empty_like(placed)
            self._labels = torch.empty_like(labels, device=placed.device)
        self._images.copy_(images, non_blocking=True)
        self._labels.copy_(labels, non_blocking=True)

    def _work(self) -> None:
        self._loss = self._step(self._images, self._labels)

    def _capture(self) -> Callable[[], None]:
        try:
            return self._graphs.capture(self._work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # the end of a capture fails after whatever spoilt it, and says less
            reason = str(error.__context__ or error).strip().splitlines()[0]
            raise TrainingError(
                f"cuda_graph: the training step cannot be captured: {reason}; "
                "go on without --cuda-graph"
            ) from error
