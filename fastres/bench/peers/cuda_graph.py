"""PyTorch and fastres with the whole step captured as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..graph import GraphedStep
from ..workload import Step, Workload, make_batches
from .peer import Peer, make_module

EAGER_GRAPH, FUSED_GRAPH = "eager CUDA graph", "fastres CUDA graph"


def _graphed(fused: bool) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        module = make_module(workload, fused, torch.channels_last)
        return GraphedStep(workload, module, make_batches(workload, torch.channels_last))

    return make


def _unavailable(workload: Workload) -> str | None:
    if workload.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the workload is on {workload.device.type}"
    if not workload.optimizer:
        return "a whole step is captured, and this workload has no optimiser"
    return None


PEERS = (
    Peer(EAGER_GRAPH, _graphed(False), _unavailable),
    Peer(FUSED_GRAPH, _graphed(True), _unavailable),
)
