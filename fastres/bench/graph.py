"""A whole training step, or a forward pass, as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .workload import Batch, InferenceStep, Step, Workload

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
        # gradients that exist would be written outside the graph's own memory
        self._graph, self._out, self.peak_bytes = _captured(
            workload.device, lambda: super(GraphedStep, self).run(self._static),
            self.release_gradients,
        )  # fmt: skip
        self._rewind(start)

    def _rewind(self, start: dict[str, Tensor]) -> None:
        """Undo the steps of the warm-up in place: the graph keeps the addresses it has seen."""
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(start[name])
            for state in self.optimizer.state.values():
                state["momentum_buffer"].zero_()

    def run(self, batch: Batch) -> Tensor:
        _copy_inputs(self._static, batch)
        self._static.target.copy_(batch.target)
        self._graph.replay()
        return self._out


class GraphedInference(InferenceStep):
    """A forward pass in eval mode captured once and replayed; a call copies its inputs in.

    Raises:
        ValueError: the workload trains or is not on a CUDA device.
        RuntimeError: something in the forward pass cannot be captured.
    """

    def __init__(
        self,
        workload: Workload,
        module: nn.Module,
        batches: Sequence[Batch],
        *,
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        if workload.device.type != "cuda" or not workload.inference:
            raise ValueError(
                "workload must be inference on a CUDA device, got "
                f"{workload.device.type} and inference={workload.inference}"
            )
        super().__init__(workload, module, batches, forward=forward)
        first = self.batches[0]
        self._static = Batch(tuple(x.clone() for x in first.inputs), first.target)
        self._graph, self._out, self.peak_bytes = _captured(
            workload.device, lambda: super(GraphedInference, self).run(self._static), lambda: None
        )

    def run(self, batch: Batch) -> Tensor:
        _copy_inputs(self._static, batch)
        self._graph.replay()
        return self._out


def _captured(
    device: torch.device, run: Callable[[], Tensor], before_capture: Callable[[], object]
) -> tuple[torch.cuda.CUDAGraph, Tensor, int]:
    """The graph of `run`, its output, and the device memory in bytes that a run takes."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        before_capture()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.cuda.graph(graph):
            out = run().detach()
        # a replay allocates nothing: what the capture took is what the step takes
        return graph, out, torch.cuda.max_memory_allocated() - before


def _copy_inputs(static: Batch, batch: Batch) -> None:
    for place, x in zip(static.inputs, batch.inputs, strict=True):
        place.copy_(x)
