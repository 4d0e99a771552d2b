"""The one way a Triton kernel is started, and the memory its results are written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# launches by kernel name since the process started: the proof that a kernel ran
launched: Counter[str] = Counter()

# a tile's row numbers are 32-bit until they are multiplied by a stride
MAX_ROWS = 2**31 - 2**16


class Launch(NamedTuple):
    """A launch that was recorded instead of made."""

    kernel: Any
    programs: int
    args: tuple
    meta: dict[str, Any]


_recorded: ContextVar[list[Launch] | None] = ContextVar("fastres_recorded", default=None)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect the launches inside the `with` instead of making them; meta tensors will do."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(kernel, programs: int, anchor: Tensor, *args, **meta) -> None:
    """Start `programs` instances of `kernel` on the current stream of `anchor`'s device.

    Args:
        kernel: a `triton.jit` function.
        programs: size of the one-dimensional grid; zero starts nothing, as an empty grid is
            illegal.
        anchor: a tensor on the device where the kernel must run.
    """
    if programs == 0:
        return
    # kernels step through a vector by one: an expanded or strided one is copied
    args = tuple(a.contiguous() if isinstance(a, Tensor) and a.dim() == 1 else a for a in args)
    # pinned, because Triton is about to change its default and with it the last bit of results
    meta = {"enable_fp_fusion": True, **meta}
    record = _recorded.get()
    if record is not None:
        record.append(Launch(kernel, programs, args, meta))
        return
    launched[kernel.__name__] += 1
    with torch.cuda.device_of(anchor):
        kernel[(programs,)](*args, **meta)


def rows_of(activation: Tensor) -> int:
    """N*H*W of an activation [N, C, H, W].

    Raises:
        ValueError: more than a 32-bit row number can count.
    """
    rows = activation.shape[0] * activation.shape[2] * activation.shape[3]
    if rows > MAX_ROWS:
        raise ValueError(
            f"N*H*W must be at most {MAX_ROWS}, got {rows} from sizes {tuple(activation.shape)}"
        )
    return rows


def dense(activation: Tensor | None) -> Tensor | None:
    """`activation` as a matrix [N*H*W, C] in memory: itself if channels_last, else a copy."""
    if activation is None:
        return None
    return activation.contiguous(memory_format=torch.channels_last)


def new_activation(like: Tensor, size: Sequence[int]) -> Tensor:
    """Uninitialised channels_last activation with the dtype and device of `like`."""
    return torch.empty(
        tuple(size), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def new_statistics(like: Tensor, *size: int) -> Tensor:
    """Uninitialised tensor in the dtype that accumulates `like`: fp64 for fp64, else fp32."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(size, dtype=wide, device=like.device)


def accumulator(like: Tensor) -> tl.dtype:
    """Triton's name of the dtype of `new_statistics`."""
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def blocks(tile: int, channels: int) -> dict[str, int]:
    """BLOCK_M and BLOCK_C of an element-wise tile of about `tile` elements.

    64 channels are a full 128-byte line of a 16-bit activation; a taller tile then reuses the
    per-channel vectors for more rows.
    """
    block_c = min(triton.next_power_of_2(channels), 64)
    return {"BLOCK_M": max(tile // block_c, 1), "BLOCK_C": block_c}
