"""torch.compile, in its modes."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable

import torch

from ..workload import InferenceStep, Step, Workload, make_batches
from .peer import Peer, anywhere, make_module, not_inference

COMPILED, FROZEN = "torch.compile", "torch.compile with freezing"
REDUCE_OVERHEAD = "torch.compile (reduce-overhead)"
MAX_AUTOTUNE = "torch.compile (max-autotune)"


class _Quiet:
    """Hides what the compiler warns about: it is no statement about the numbers or the time."""

    def run(self, batch):
        if self.workload.device.type == "cuda":
            # what the graphs of the step before have returned may be written over
            torch.compiler.cudagraph_mark_step_begin()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().run(batch)


class _CompiledStep(_Quiet, Step):
    pass


class _CompiledInferenceStep(_Quiet, InferenceStep):
    pass


def _compiled(**options) -> Callable[[Workload], Step]:
    def make(workload: Workload) -> Step:
        module = make_module(workload, False, torch.channels_last)
        module.train(not workload.inference)
        torch._dynamo.reset()
        kind = _CompiledInferenceStep if workload.inference else _CompiledStep
        return kind(
            workload,
            module,
            make_batches(workload, torch.channels_last),
            forward=torch.compile(module, **options),
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

    module = make_module(workload, False, torch.channels_last).eval()
    torch._dynamo.reset()
    batches = make_batches(workload, torch.channels_last)
    return _FrozenStep(workload, module, batches, forward=torch.compile(module))


def _unavailable(workload: Workload) -> str | None:
    if sys.platform == "win32":
        return "torch.compile is not measured on Windows"
    if workload.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile needs a C++ compiler on a CPU, and there is none"
    return None


def _overhead_unavailable(workload: Workload) -> str | None:
    if workload.device.type != "cuda":
        return (
            "reduce-overhead is torch.compile with CUDA graphs, and the workload is on "
            f"{workload.device.type}: there it is torch.compile"
        )
    return _unavailable(workload)


def _freezing_unavailable(workload: Workload) -> str | None:
    return not_inference(workload) or _unavailable(workload)


PEERS = (
    Peer(COMPILED, _compiled(), _unavailable),
    Peer(REDUCE_OVERHEAD, _compiled(mode="reduce-overhead"), _overhead_unavailable),
    Peer(MAX_AUTOTUNE, _compiled(mode="max-autotune"), _unavailable),
    Peer(FROZEN, _frozen, _freezing_unavailable),
    # the same path without code generation, to try it in seconds
    Peer("torch.compile (aot_eager)", _compiled(backend="aot_eager"), anywhere),
)
