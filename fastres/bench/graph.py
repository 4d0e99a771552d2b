"""A whole training step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .workload import Batch, Step, Workload

_WARM_UP = 3  # steps before the capture: libraries choose algorithms, SGD and the scaler allocate


class GraphedStep(Step):
    """Forward, loss, backward and SGD captured once and replayed; a call copies its buffers in.

    The copy is part of the step: a graph reads its input where it was captured.
    `peak_bytes` is the device memory that the step takes.

    Raises:
        ValueError: the workload has no optimiser or is not on a CUDA device.
        RuntimeError: something in the step cannot be captured.
    """

    def __init__(self, workload: Workload, module: nn.Module, batches: Sequence[Batch]) -> None:
        if workload.device.type != "cuda" or not workload.optimizer:
            raise ValueError(
                "workload must be on a CUDA device and have an optimiser, got "
                f"{workload.device.type} and optimizer={workload.optimizer}"
            )
        super().__init__(workload, module, batches)
        first = self.batches[0]
        self._static = Batch(tuple(x.clone() for x in first.inputs), first.target.clone())
        start = {name: t.clone() for name, t in module.state_dict().items()}
        with torch.cuda.device(workload.device):
            self._capture()
        self._rewind(start)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                super().run(self._static)
        torch.cuda.current_stream().wait_stream(side)
        # gradients that exist would be written outside the graph's own memory
        self.release_gradients()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.cuda.graph(self._graph):
            self._out = super().run(self._static).detach()
        # a replay allocates nothing: what the capture took is what the step takes
        self.peak_bytes = torch.cuda.max_memory_allocated() - before

    def _rewind(self, start: dict[str, Tensor]) -> None:
        """Undo the steps of the warm-up in place: the graph keeps the addresses it has seen."""
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(start[name])
            for state in self.optimizer.state.values():
                state["momentum_buffer"].zero_()

    def run(self, batch: Batch) -> Tensor:
        for static, x in zip(self._static.inputs, batch.inputs, strict=True):
            static.copy_(x)
        self._static.target.copy_(batch.target)
        self._graph.replay()
        return self._out
