"""The addresses that kernels load and store in Triton's interpreter, launch by launch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from fastres.kernels.launch import Launch, recording


class Touched(NamedTuple):
    """launches, and the addresses loaded and stored by each, by its number."""

    launches: list[Launch]
    loaded: dict[int, set[int]]
    stored: dict[int, set[int]]


class Touch:
    """touch(call): what the launches of a call touch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, call: Callable) -> Touched:
        from triton.runtime.interpreter import InterpreterBuilder

        loaded, stored = defaultdict(set), defaultdict(set)
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def note(where, pointers, mask):
            chosen = pointers.data[mask.data.astype(bool)]
            where[len(launches) - 1].update(chosen.ravel().tolist())

        def noted_load(self, pointers, mask, *rest, **named):
            note(loaded, pointers, mask)
            return load(self, pointers, mask, *rest, **named)

        def noted_store(self, pointers, value, mask, *rest, **named):
            note(stored, pointers, mask)
            return store(self, pointers, value, mask, *rest, **named)

        with self.monkeypatch.context() as patched, recording(make=True) as launches:
            patched.setattr(InterpreterBuilder, "create_masked_load", noted_load)
            patched.setattr(InterpreterBuilder, "create_masked_store", noted_store)
            call()
        return Touched(launches, loaded, stored)


def _within(addresses: set[int], tensor: torch.Tensor) -> int:
    """Bytes of the tensor's elements whose addresses are among these."""
    first = tensor.data_ptr()
    last = first + tensor.numel() * tensor.element_size()
    return sum(first <= address < last for address in addresses) * tensor.element_size()


def assert_declared(found: Touched, kernel: str | None = None) -> None:
    """Every launch touches exactly the bytes that it declares, and nothing else.

    Args:
        kernel: that must be among the launches.
    """
    names = [made.kernel.__name__ for made in found.launches]
    assert names
    assert kernel is None or kernel in names
    for index, (made, name) in enumerate(zip(found.launches, names, strict=True)):
        read, written, tensors = made.bytes_read(), made.bytes_written(), made.tensors()
        for argument, tensor in tensors.items():
            same = [other for other in tensors if tensors[other] is tensor]
            declared = sum(read.get(other, 0) for other in same)
            loaded = _within(found.loaded[index], tensor)
            if any(made.reads.get(other) == 0 for other in same):
                loaded = declared  # the compiler drops a load that nothing uses
            assert loaded == declared, f"{name} reads {loaded} B of {argument}, not {declared}"
            declared = written.get(argument, 0)
            stored = _within(found.stored[index], tensor)
            assert stored == declared, f"{name} writes {stored} B of {argument}, not {declared}"
        memory = [(t.data_ptr(), t.numel() * t.element_size()) for t in tensors.values()]
        for address in found.loaded[index] | found.stored[index]:
            assert any(first <= address < first + size for first, size in memory), (
                f"{name} touches memory of no argument"
            )
