"""What an implementation is, and what making one takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..workload import Step, Workload, make_batches, make_step


@dataclass(frozen=True)
class Peer:
    """An implementation.

    Attributes:
        name: as in tables and files.
        make: the workload's step in this implementation; the first call may still compile.
        unavailable: the reason why it cannot run the workload here, or None.
        bound: it is a part of the work, timed as a bound; what it computes is not compared.
    """

    name: str
    make: Callable[[Workload], Step]
    unavailable: Callable[[Workload], str | None]
    bound: bool = False


def make_module(workload: Workload, fused: bool, memory_format: torch.memory_format) -> nn.Module:
    """The workload's module with its weights, on its device, in training mode."""
    module = workload.build(fused)
    module.load_state_dict(workload.state())
    return module.to(workload.device, memory_format=memory_format).train()


def plain_step(workload: Workload, fused: bool, memory_format: torch.memory_format) -> Step:
    """The workload's step by that module as it is."""
    module = make_module(workload, fused, memory_format)
    return make_step(workload, module, make_batches(workload, memory_format))


def anywhere(workload: Workload) -> str | None:
    """Of a peer that runs whatever the workload is."""
    return None


def not_inference(workload: Workload) -> str | None:
    """Of a peer that does not train."""
    return None if workload.inference else "it is for inference, and this workload trains"
