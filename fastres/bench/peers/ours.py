"""fastres: the fused network in training, and the optimised one in inference."""

from __future__ import annotations

import torch

from ...inference import optimize
from ..workload import InferenceStep, Step, Workload, make_batches
from .peer import Peer, anywhere, make_module, not_inference, plain_step

FUSED, FUSED_NCHW, OPTIMIZED = "fastres", "fastres, NCHW script", "fastres.optimize"


def _optimized(workload: Workload) -> Step:
    module = make_module(workload, False, torch.channels_last).eval()
    batches = make_batches(workload, torch.channels_last)
    ours = optimize(module, batches[0].inputs, dtype=workload.autocast)
    return InferenceStep(workload, module, batches, forward=ours)


PEERS = (
    Peer(FUSED, lambda workload: plain_step(workload, True, torch.channels_last), anywhere),
    Peer(
        FUSED_NCHW, lambda workload: plain_step(workload, True, torch.contiguous_format), anywhere
    ),
    Peer(OPTIMIZED, _optimized, not_inference),
)
