"""PyTorch and fastres with the whole step, or the forward pass, captured as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...inference import optimize
from ..graph import GraphedInference, GraphedStep
from ..workload import InferenceStep, Step, Workload, make_batches
from .peer import Peer, make_module, not_inference

EAGER_GRAPH, FUSED_GRAPH = "eager CUDA graph", "fastres CUDA graph"
OPTIMIZED_GRAPH = "fastres.optimize CUDA graph"


def _graphed(fused: bool) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        module = make_module(workload, fused, torch.channels_last)
        kind = GraphedInference if workload.inference else GraphedStep
        return kind(workload, module, make_batches(workload, torch.channels_last))

    return make


def _optimized(workload: Workload) -> Step:
    module = make_module(workload, False, torch.channels_last).eval()
    batches = make_batches(workload, torch.channels_last)
    ours = optimize(module, batches[0].inputs, dtype=workload.autocast, cuda_graph=True)
    return InferenceStep(workload, module, batches, forward=ours)


def _unavailable(workload: Workload) -> str | None:
    if workload.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the workload is on {workload.device.type}"
    if not workload.optimizer and not workload.inference:
        return "a whole step is captured, and this workload has no optimiser"
    return None


def _optimized_unavailable(workload: Workload) -> str | None:
    return not_inference(workload) or _unavailable(workload)


PEERS = (
    Peer(EAGER_GRAPH, _graphed(False), _unavailable),
    Peer(FUSED_GRAPH, _graphed(True), _unavailable),
    Peer(OPTIMIZED_GRAPH, _optimized, _optimized_unavailable),
)
