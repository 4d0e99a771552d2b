"""Calls as a device runs them: without the host's time, over buffers that no cache still holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .timing import Call

_CACHED = 256 * 2**20  # bytes: more than any GPU's second-level cache
_MOST_COPIES = 8


def copies_needed(nbytes: int, device: torch.device) -> int:
    """Sets of buffers to rotate over so that a call does not find its own in the cache."""
    if device.type != "cuda":
        return 1
    return min(_CACHED // max(nbytes, 1) + 2, _MOST_COPIES)


def on_device(
    call: Callable[..., Any],
    argument_sets: Sequence[tuple],
    device: torch.device,
    pool: Any = None,
) -> Call:
    """One sample of `call`: a call with each set of arguments in turn.

    On a GPU the calls are captured in one CUDA graph, as they would run in a training step that is
    captured: launching from Python takes longer than many kernels. Elsewhere they are just made.

    Args:
        pool: of `torch.cuda.graph_pool_handle`, for samples whose results nobody reads: they may
            lie in the same memory.

    Raises:
        RuntimeError: the call cannot be captured.
    """

    def run(index: int) -> None:
        del index
        for arguments in argument_sets:
            call(*arguments)

    if device.type != "cuda":
        return run
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(0)  # compiles, and lets libraries choose and allocate
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run(0)

    def replay(index: int) -> None:
        del index
        graph.replay()

    return replay
