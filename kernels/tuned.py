"""Which provider and which block sizes an operator gets: kernels/configs/*.json.

A row names an operator, the GPU families and dtypes it serves, optionally whether a prologue is
fused and a shape class, and gives a provider ("triton" or "cudnn") and a config. `measured` is
null where the row is a judgement and not a measurement; `reason` says which. An unknown shape gets
the nearest row by the distance of the logarithms. Nothing is tuned while a model runs, so two ranks
cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from math import inf, log2
from pathlib import Path
from typing import Any, NamedTuple

import torch

CONFIGS = Path(__file__).with_name("configs")
FAMILIES = ("sm_80", "sm_90", "sm_100", "sm_120")

_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_forced_provider: ContextVar[str | None] = ContextVar("fastres_provider", default=None)


class Choice(NamedTuple):
    """A provider and the config its kernel is launched with (empty for cudnn)."""

    provider: str
    config: dict[str, int]


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


@cache
def load_rows(path: Path) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    """(GPU name or None, rows) of one table."""
    table = json.loads(path.read_text())
    return table["gpu"], tuple(table["rows"])


@cache
def _rows_for(gpu: str | None) -> tuple[dict[str, Any], ...]:
    """The rows of the table for this GPU by name, then those of default.json."""
    default = CONFIGS / "default.json"
    own: tuple[dict[str, Any], ...] = ()
    for path in sorted(CONFIGS.glob("*.json")):
        name, rows = load_rows(path)
        if path != default and gpu is not None and name is not None and name in gpu:
            own += rows
    return own + load_rows(default)[1]


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
    for row in _rows_for(gpu):
        if row["operator"] != operator or chip not in row["families"] or dtype not in row["dtypes"]:
            continue
        if row.get("prologue", prologue) != prologue:
            continue
        distance = _distance(row, shape)
        if distance < least:  # of equals the first: a GPU's own rows come before the default's
            best, least = row, distance
    if best is None:
        raise LookupError(f"no row for operator {operator}, dtype {dtype} on {chip}")
    return Choice(best["provider"], dict(best["config"]))


@cache
def _chip(device: torch.device) -> tuple[str | None, str]:
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
        operator: "bn_stats", "bn_apply", "bn_backward_reduce", "bn_backward", "max_pool",
            "pad_shortcut", "conv1x1" or "conv3x3".
        dtype: of the activations, or "tf32" for fp32 products in TF32.
        prologue: whether the convolution normalises its input first.
        shape: of a convolution `rows` (of the output), `inner` (channels in), `outer` (out).

    Raises:
        LookupError: the tables hold no row for this operator and dtype.
    """
    name = dtype if isinstance(dtype, str) else _DTYPES[dtype]
    chosen = _nearest(*_chip(device), operator, name, prologue, tuple(sorted(shape.items())))
    forced = _forced_provider.get()
    if forced is None or not operator.startswith("conv"):
        return chosen
    return chosen._replace(provider=forced)


@contextmanager
def provider(name: str) -> Iterator[None]:
    """Force the provider of every convolution inside the `with`: "triton" or "cudnn".

    Raises:
        ValueError: `name` is neither.
    """
    if name not in ("triton", "cudnn"):
        raise ValueError(f"name must be triton or cudnn, got {name!r}")
    token = _forced_provider.set(name)
    try:
        yield
    finally:
        _forced_provider.reset(token)
