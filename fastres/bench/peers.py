"""The implementations that are compared, each made from the same weights; `None` or a reason."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..inference import optimize
from .ceiling import ConvolutionsAlone
from .graph import GraphedStep
from .timelimit import time_limit
from .workload import InferenceStep, Step, Workload, make_batches, make_step

FUSED, EAGER = "fastres", "eager channels_last"
FUSED_NCHW, EAGER_NCHW = "fastres, NCHW script", "eager NCHW"
CONVOLUTIONS = "convolutions alone"
OPTIMIZED, FROZEN = "fastres.optimize", "torch.compile with freezing"


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


def _module(workload: Workload, fused: bool, memory_format: torch.memory_format) -> nn.Module:
    module = workload.build(fused)
    module.load_state_dict(workload.state())
    return module.to(workload.device, memory_format=memory_format).train()


def _step(workload: Workload, fused: bool, memory_format: torch.memory_format) -> Step:
    module = _module(workload, fused, memory_format)
    return make_step(workload, module, make_batches(workload, memory_format))


def _fused(workload: Workload) -> Step:
    return _step(workload, True, torch.channels_last)


def _eager(workload: Workload) -> Step:
    return _step(workload, False, torch.channels_last)


def _convolutions(workload: Workload) -> Step:
    module = _module(workload, False, torch.channels_last)
    return ConvolutionsAlone(workload, module, make_batches(workload, torch.channels_last))


def _nchw(fused: bool) -> Callable[[Workload], Step]:
    """Weights and inputs as a script leaves them that knows nothing of channels_last."""
    return lambda workload: _step(workload, fused, torch.contiguous_format)


def _graphed(fused: bool) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        module = _module(workload, fused, torch.channels_last)
        return GraphedStep(workload, module, make_batches(workload, torch.channels_last))

    return make


class _CompiledStep(Step):
    """Hides what the compiler warns about: it is no statement about the numbers or the time."""

    def run(self, batch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().run(batch)


def _compiled(backend: str) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        module = _module(workload, False, torch.channels_last)
        torch._dynamo.reset()
        return _CompiledStep(
            workload,
            module,
            make_batches(workload, torch.channels_last),
            forward=torch.compile(module, backend=backend),
        )

    return make


class _FrozenStep(InferenceStep):
    """A compiled forward pass with the weights as constants, for the call that compiles it."""

    def run(self, batch):
        with warnings.catch_warnings(), torch._inductor.config.patch(freezing=True):
            warnings.simplefilter("ignore")
            return super().run(batch)

    def __call__(self, index: int):
        # compiled by now: the options above would be time of ours, not of the step
        return super().run(self.batches[index % len(self.batches)])


def _frozen(workload: Workload) -> Step:
    import torch._inductor.config

    module = _module(workload, False, torch.channels_last).eval()
    torch._dynamo.reset()
    batches = make_batches(workload, torch.channels_last)
    return _FrozenStep(workload, module, batches, forward=torch.compile(module))


def _optimized(workload: Workload) -> Step:
    module = _module(workload, False, torch.channels_last).eval()
    batches = make_batches(workload, torch.channels_last)
    ours = optimize(module, batches[0].inputs, dtype=workload.autocast)
    return InferenceStep(workload, module, batches, forward=ours)


def _anywhere(workload: Workload) -> str | None:
    return None


def _graph_unavailable(workload: Workload) -> str | None:
    if workload.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the workload is on {workload.device.type}"
    if not workload.optimizer:
        return "a whole step is captured, and this workload has no optimiser"
    return None


def _compile_unavailable(workload: Workload) -> str | None:
    if sys.platform == "win32":
        return "torch.compile is not measured on Windows"
    if workload.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile needs a C++ compiler on a CPU, and there is none"
    return None


def _not_inference(workload: Workload) -> str | None:
    return None if workload.inference else "it is for inference, and this workload trains"


def _freezing_unavailable(workload: Workload) -> str | None:
    return _not_inference(workload) or _compile_unavailable(workload)


PEERS = {
    peer.name: peer
    for peer in (
        Peer(EAGER, _eager, _anywhere),
        Peer(FUSED, _fused, _anywhere),
        Peer(CONVOLUTIONS, _convolutions, _anywhere, bound=True),
        Peer(EAGER_NCHW, _nchw(False), _anywhere),
        Peer(FUSED_NCHW, _nchw(True), _anywhere),
        Peer("eager CUDA graph", _graphed(False), _graph_unavailable),
        Peer("fastres CUDA graph", _graphed(True), _graph_unavailable),
        Peer("torch.compile", _compiled("inductor"), _compile_unavailable),
        Peer(OPTIMIZED, _optimized, _not_inference),
        Peer(FROZEN, _frozen, _freezing_unavailable),
        # the same path without code generation, to try it in seconds
        Peer("torch.compile (aot_eager)", _compiled("aot_eager"), _anywhere),
    )
}


def get(name: str) -> Peer:
    """Raises ValueError for an implementation that there is not."""
    if name not in PEERS:
        raise ValueError(f"implementation must be one of {', '.join(PEERS)}, got {name!r}")
    return PEERS[name]


@contextmanager
def preparing(seconds: float | None) -> Iterator[None]:
    """Around what may compile: raises TimeoutError after so many seconds (None: no limit)."""
    if seconds is None:
        yield
        return
    with time_limit(seconds):
        yield
