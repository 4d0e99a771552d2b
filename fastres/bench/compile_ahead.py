"""Compiles the Triton kernels behind recorded calls in several processes, into Triton's cache.

A process that runs the calls later finds its kernels there. No GPU is needed or touched: Triton is
told of one, and the calls are made with fake tensors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels.tables import FAMILIES
from .compare import describe
from .operator_calls import Call

if TYPE_CHECKING:
    from ..kernels.tuned import Choice, Key

# the least compute capability of each family, for a GPU that is not there
_ARCHITECTURES = {name: int(name.removeprefix("sm_")) for name in FAMILIES}


class Target(NamedTuple):
    """A GPU to compile for: its name (None: any), its family of configs, e.g. 90 for 9.0."""

    gpu: str | None
    family: str
    architecture: int

    @classmethod
    def of(cls, device: torch.device) -> Target:
        """A device's; that of an sm_90 GPU where it is none."""
        from ..kernels import tuned

        gpu, family = tuned.chip(device)
        if device.type != "cuda":
            return cls(gpu, family, _ARCHITECTURES[family])
        major, minor = torch.cuda.get_device_capability(device)
        return cls(gpu, family, 10 * major + minor)


class Wanted(NamedTuple):
    """The kernels of a call; where `key` is given, with `choice` made for it."""

    call: Call
    key: Key | None = None
    choice: Choice | None = None


class Compiler:
    """Processes that compile; leave the `with` to end them.

    Args:
        target: the GPU.
        processes: how many.
    """

    def __init__(self, target: Target, processes: int) -> None:
        # fresh processes: a forked one would have the parent's CUDA context and locks
        self._pool = ProcessPoolExecutor(
            processes, mp_context=get_context("spawn"), initializer=_start, initargs=(target,)
        )
        self._asked: dict[str, Future] = {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def ask(self, wanted: Iterable[Wanted]) -> list[Future]:
        """Begin to compile what was not asked for before, in this order."""
        found = []
        for one in wanted:
            name = repr(one)
            if name not in self._asked:
                try:
                    self._asked[name] = self._pool.submit(_compile, one)
                except BrokenExecutor:  # a compiler that crashed took its process along
                    break
            found.append(self._asked[name])
        return found

    def finish(self, wanted: Iterable[Wanted], deadline: float | None = None) -> list[str]:
        """Wait until all of it is compiled, or until `deadline` (time.monotonic()).

        Returns what went wrong, a line each. Nobody has to care: whoever runs such a kernel meets
        the same error.
        """
        futures = self.ask(wanted)
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        done, _ = wait(futures, left)
        errors = []
        for future in done:
            error = future.exception()
            found = future.result() if error is None else repr(error)
            if found is not None:
                errors.append(found)
        return errors


class _Device:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


_target: Target | None = None


def _start(target: Target) -> None:
    """Make this process one that compiles for `target`."""
    global _target
    _target = target
    # kernels decorated for the interpreter cannot be compiled; read when Triton is imported
    os.environ.pop("TRITON_INTERPRET", None)
    from triton.runtime import driver

    torch.set_num_threads(1)
    driver.set_active(_Device(target.architecture))


def _compile(wanted: Wanted) -> str | None:
    """Compile the kernels of a call as a launch does, without launching; the error in words."""
    from ..kernels import tuned
    from .operator_choices import launches_of

    def watcher(key: Key, choice: Choice) -> Choice:
        return wanted.choice if key == wanted.key else choice

    try:
        with tuned.choosing_for(_target.gpu, _target.family), tuned.watching(watcher):
            launches = launches_of(wanted.call)
        for made in launches:
            arguments = [a.dtype if isinstance(a, Tensor) else a for a in made.args]
            made.kernel.warmup(*arguments, grid=(made.programs,), **made.meta)
    except Exception as error:  # whatever a compiler raises
        return f"{wanted.call}: {describe(error)}"
    return None
