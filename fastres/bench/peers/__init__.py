"""The implementations that are compared, each made from the same weights; `None` or a reason.

One adapter a file; a file's `PEERS` are what it brings. What an adapter needs beside PyTorch is
imported when its peer is asked for, and a peer that cannot run says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..timelimit import time_limit
from . import (
    compiled,
    convolutions,
    cuda_graph,
    cudnn_frontend,
    eager,
    jax_flax,
    onnx_runtime,
    ours,
    timm_models,
    torchvision_models,
)
from .compiled import COMPILED, FROZEN, MAX_AUTOTUNE, REDUCE_OVERHEAD
from .convolutions import CONVOLUTIONS
from .cuda_graph import EAGER_GRAPH, FUSED_GRAPH, OPTIMIZED_GRAPH
from .cudnn_frontend import CUDNN
from .eager import EAGER, EAGER_NCHW
from .jax_flax import FLAX
from .onnx_runtime import ONNX_RUNTIME
from .ours import FUSED, FUSED_NCHW, OPTIMIZED
from .peer import Peer
from .timm_models import TIMM
from .torchvision_models import TORCHVISION

__all__ = [
    "COMPILED",
    "CONVOLUTIONS",
    "CUDNN",
    "EAGER",
    "EAGER_GRAPH",
    "EAGER_NCHW",
    "FLAX",
    "FROZEN",
    "FUSED",
    "FUSED_GRAPH",
    "FUSED_NCHW",
    "MAX_AUTOTUNE",
    "ONNX_RUNTIME",
    "OPTIMIZED",
    "OPTIMIZED_GRAPH",
    "PEERS",
    "REDUCE_OVERHEAD",
    "TIMM",
    "TORCHVISION",
    "Peer",
    "get",
    "preparing",
]

_ADAPTERS = (
    eager,
    ours,
    convolutions,
    cuda_graph,
    compiled,
    torchvision_models,
    timm_models,
    jax_flax,
    onnx_runtime,
    cudnn_frontend,
)
PEERS = {peer.name: peer for adapter in _ADAPTERS for peer in adapter.PEERS}


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
