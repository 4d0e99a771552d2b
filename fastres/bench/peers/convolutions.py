"""The convolutions of the step and nothing else, as a bound."""

from __future__ import annotations

import torch

from ..ceiling import ConvolutionsAlone
from ..workload import Step, Workload, make_batches
from .peer import Peer, anywhere, make_module

CONVOLUTIONS = "convolutions alone"


def _convolutions(workload: Workload) -> Step:
    module = make_module(workload, False, torch.channels_last)
    return ConvolutionsAlone(workload, module, make_batches(workload, torch.channels_last))


PEERS = (Peer(CONVOLUTIONS, _convolutions, anywhere, bound=True),)
