"""A case of the benchmark suite: measured once, asked about by many tests."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import isolated
from .compare import Comparison, Entry
from .peers import FUSED
from .workload import Workload

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class _Order:
    """What the measuring process is asked for; can be pickled."""

    make: Callable[[], Workload]
    rounds: int
    extra: tuple[str, ...]
    keep_memory: bool
    threads: int


class Case:
    """One workload under several implementations, measured on the first call in a fresh process.

    A fresh one, because what a process has allocated before decides how many page faults eager
    PyTorch has: glibc's malloc adapts, and only ever towards keeping more.

    Args:
        make: the workload; a module-level function, or a partial of one.
        rounds: interleaved rounds.
        extra: implementations beside the fused one and the baseline.
        skipped: implementation to the reason why this case leaves it out.
        memory: implementation to a function that measures its memory, {"peak_bytes": ...}.
        keep_memory: tell malloc beforehand never to give memory back, for all implementations:
            how much of a difference is page faults.
    """

    def __init__(
        self,
        make: Callable[[], Workload],
        rounds: int,
        *,
        extra: Sequence[str] = ("eager NCHW",),
        skipped: dict[str, str] | None = None,
        memory: dict[str, Callable[[], dict[str, Any]]] | None = None,
        keep_memory: bool = False,
    ) -> None:
        self.skipped = skipped or {}
        self.keep_memory = keep_memory
        self._make, self._rounds, self._extra = make, rounds, tuple(extra)
        self._memory = memory or {}
        self._comparison: Comparison | None = None

    def __call__(self) -> Comparison:
        """The comparison; its entries have times but no steps.

        Raises:
            IsolatedError: the measuring process raised or crashed.
        """
        if self._comparison is None:
            order = _Order(
                self._make, self._rounds, self._extra, self.keep_memory, torch.get_num_threads()
            )
            entries, calls = isolated.call(_measure, order)
            comparison = Comparison(self._make())
            comparison.entries.update((entry.name, entry) for entry in entries)
            comparison.calls_per_sample = calls
            for name, measure in self._memory.items():
                comparison.entries[name].memory = measure()
            self._comparison = comparison
        return self._comparison


def keep_memory_reason() -> str | None:
    """Why malloc cannot be told to keep its memory here, or None."""
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"):
        return "needs glibc's mallopt"
    return None


def keep_memory() -> None:
    """Tell malloc never to give memory back, in this process.

    Raises:
        RuntimeError: it refuses.
    """
    libc = ctypes.CDLL(None)
    # no block is mapped by itself, and the heap never shrinks
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)):
        raise RuntimeError("mallopt refused to keep memory")


def _measure(report: isolated.Report, order: _Order) -> tuple[list[Entry], int]:
    if order.keep_memory:
        keep_memory()
    torch.set_num_threads(order.threads)
    comparison = Comparison(order.make(), log=report)
    comparison.prepare(FUSED, *order.extra)
    comparison.measure(order.rounds)
    for entry in comparison.entries.values():
        entry.step = None
    return list(comparison.entries.values()), comparison.calls_per_sample
