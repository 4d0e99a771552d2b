"""Which provider and which block sizes an operator gets, from the tuned tables (`tables`).

The first of these with a row near the shape decides: the user's table for this GPU (written by
`fastres tune`), the shipped one, default.json; if none is near, the nearest row of all. Each table
is read once per process and nothing is tuned while a model runs, so a process never changes its
mind; `fingerprint` lets processes see that they agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import inf, log2
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import tables
from .tables import CONFIGS, FAMILIES, PROVIDERS

__all__ = [
    "CONFIGS",
    "FAMILIES",
    "Choice",
    "Key",
    "chip",
    "choose",
    "choosing_for",
    "family",
    "fingerprint",
    "forget",
    "load_rows",
    "provider",
    "watching",
]

# a factor of two over all extents together: a row further away than that was meant for others
_NEAR = 1.0

_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
# of the whole process: autograd calls from a thread of its own
_forced_provider: str | None = None


class Choice(NamedTuple):
    """A provider and the config its kernel is launched with (empty for cudnn)."""

    provider: str
    config: dict[str, int]


class Key(NamedTuple):
    """What a choice depends on, beside the GPU."""

    operator: str
    dtype: str
    prologue: bool
    shape: tuple[tuple[str, int], ...]


# told every key and the tables' choice, gives the choice that counts; not bound to a thread, as
# a backward pass on a GPU runs on one of its own
_watcher: Callable[[Key, Choice], Choice] | None = None
# (GPU's name, family) of the GPU that is chosen for, wherever the tensors are
_stand_in: tuple[str | None, str] | None = None


def family(capability: tuple[int, int]) -> str:
    """The family of configs for a compute capability; chips are grouped by shared memory.

    8.6 and 8.9 have the 99 KiB a block of 12.x has, and get its configs.
    """
    major, minor = capability
    if major == 9:
        return "sm_90"
    if major in (10, 11):
        return "sm_100"
    return "sm_80" if (major, minor) in ((8, 0), (8, 7)) else "sm_120"


def load_rows(path: Path) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    """(GPU name or None, rows) of one table.

    Raises:
        TableError: it cannot be read or is malformed.
    """
    return tables.read(path)[1:3]


@cache
def _tables_for(gpu: str | None) -> tuple[tables.Table, ...]:
    """The tables that serve this GPU, the one that is asked first coming first."""
    default = tables.read(CONFIGS / "default.json")
    if gpu is None:
        return (default,)
    own = tables.user_table(gpu)
    shipped = [tables.read(path) for path in sorted(CONFIGS.glob("*.json"))]
    shipped = [table for table in shipped if table.gpu is not None and table.gpu in gpu]
    return (*([] if own is None else [own]), *shipped, default)


def _distance(row: dict[str, Any], shape: tuple[tuple[str, int], ...]) -> float:
    known = row.get("shape", {})
    return sum(abs(log2(known[name] / max(extent, 1))) for name, extent in shape if name in known)


@cache
def _nearest(
    gpu: str | None,
    chip: str,
    operator: str,
    dtype: str,
    prologue: bool,
    shape: tuple[tuple[str, int], ...],
) -> Choice:
    best, least = None, inf
    for table in _tables_for(gpu):
        for row in table.rows:
            if row["operator"] != operator or row.get("prologue", prologue) != prologue:
                continue
            if chip not in row["families"] or dtype not in row["dtypes"]:
                continue
            distance = _distance(row, shape)
            if distance < least:  # of equals the first
                best, least = row, distance
        if least <= _NEAR:
            break
    if best is None:
        raise LookupError(f"no row for operator {operator}, dtype {dtype} on {chip}")
    return Choice(best["provider"], dict(best["config"]))


@cache
def chip(device: torch.device) -> tuple[str | None, str]:
    """(GPU's name, family of configs) of a device."""
    if device.type != "cuda":  # Triton's interpreter has no chip; any family's blocks will do
        return None, "sm_90"
    return (
        torch.cuda.get_device_name(device),
        family(torch.cuda.get_device_capability(device)),
    )


def choose(
    operator: str,
    device: torch.device,
    dtype: torch.dtype | str,
    *,
    prologue: bool = False,
    **shape: int,
) -> Choice:
    """Provider and config of an operator on a device.

    Args:
        operator: as in the tables' rows, such as "bn_stats" or "conv1x1".
        dtype: of the activations, or "tf32" for fp32 products in TF32.
        prologue: whether the operator normalises its input first.
        shape: of a convolution `rows` (of the output), `inner` (channels in), `outer` (out).

    Raises:
        LookupError: the tables hold no row for this operator and dtype.
        TableError: a table is malformed; names the file and the row.
    """
    name = dtype if isinstance(dtype, str) else _DTYPES[dtype]
    key = Key(operator, name, prologue, tuple(sorted(shape.items())))
    chosen = _nearest(*(_stand_in or chip(device)), *key)
    if _forced_provider is not None and operator.startswith("conv"):
        chosen = chosen._replace(provider=_forced_provider)
    return chosen if _watcher is None else _watcher(key, chosen)


@contextmanager
def provider(name: str) -> Iterator[None]:
    """Force the provider of every convolution inside the `with`, in every thread: "triton" or
    "cudnn".

    Raises:
        ValueError: `name` is neither.
    """
    if name not in PROVIDERS:
        raise ValueError(f"name must be {' or '.join(PROVIDERS)}, got {name!r}")
    global _forced_provider
    before, _forced_provider = _forced_provider, name
    try:
        yield
    finally:
        _forced_provider = before


@contextmanager
def watching(watcher: Callable[[Key, Choice], Choice]) -> Iterator[None]:
    """Let `watcher` see every choice inside the `with`, in every thread, and change it.

    For tuning and for inventories; a model that trains is not watched.
    """
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


@contextmanager
def choosing_for(gpu: str | None, chip: str) -> Iterator[None]:
    """Choose inside the `with` as on a GPU of this name and family, which need not be there."""
    global _stand_in
    before, _stand_in = _stand_in, (gpu, chip)
    try:
        yield
    finally:
        _stand_in = before


def fingerprint(device: torch.device) -> tuple[str | None, str, list[str]]:
    """(GPU name, hash over the text of every table that serves it, the tables' paths).

    Processes on GPUs of one name must have one hash, or they would run different kernels.

    Raises:
        TableError: a table is malformed.
    """
    gpu = chip(device)[0]
    digest, paths = hashlib.sha256(), []
    for table in _tables_for(gpu):
        digest.update(table.text.encode() + b"\0")
        paths.append(str(table.path))
    return gpu, digest.hexdigest(), paths


def forget() -> None:
    """Drop what was read, so that the next choice reads the tables anew (after tuning)."""
    for cached in (tables.read, _tables_for, _nearest):
        cached.cache_clear()
