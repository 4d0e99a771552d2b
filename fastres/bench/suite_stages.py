"""Stages of the suite that no command has; each writes its results after every part."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import backends
from . import cases, environment, results, traffic
from .compare import describe


@dataclass(frozen=True)
class Sizes:
    """How large and how long.

    Attributes:
        deep, shallow: the networks; batch, image: of their steps; dtypes: the first decides.
        rounds: of a comparison; operator_rounds: of an operator by itself.
        copy_bytes, product: of what is copied and multiplied to see what the device can do.
        compiled: calls of a network whose kernels are compiled ahead, None: all.
        patience: scales the seconds that a part needs at least.
    """

    deep: str
    shallow: str
    batch: int
    image: int
    dtypes: tuple[str, ...]
    rounds: int
    operator_rounds: int
    copy_bytes: int
    product: int
    compiled: int | None
    patience: float


FULL = Sizes(
    "resnet50", "resnet18", 256, 224, ("bf16", "fp16"), 30, 15, 2**31, 8192, None, 1.0
)  # fmt: skip
SMOKE = Sizes("bottleneck14", "basic10", 4, 32, ("fp32", "bf16"), 3, 3, 2**22, 128, 1, 0.1)


class Recorder:
    """The results of one stage: a file that is written again after every part."""

    def __init__(self, path: Path, seconds: float, device: torch.device, sizes: Sizes) -> None:
        self.path, self.device, self.sizes = path, device, sizes
        self._end = time.monotonic() + seconds
        self.content: dict[str, Any] = {
            "environment": environment.record(device), "parts": {}, "errors": [],
        }  # fmt: skip

    @property
    def left(self) -> float:
        """Seconds this stage still has."""
        return self._end - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        self.content["parts"][name] = value
        self.write()

    def attempt(self, name: str, do: Callable[[], object], minimum: float = 10.0) -> None:
        """Do one part; an error is recorded with its traceback and the next part goes on."""
        if self.left < minimum * self.sizes.patience:
            self.put(name, {"status": "not reached", "reason": f"{self.left:.0f} s left"})
            print(f"{name}: not reached", flush=True)
            return
        try:
            do()
        except Exception as error:
            print(f"{name}: {describe(error)}", flush=True)
            self.content["errors"].append({"part": name, "traceback": traceback.format_exc()})
            self.write()
        _empty_cache(self.device)

    def write(self) -> None:
        results.write(self.path, self.content)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def versions(recorder: Recorder) -> None:
    """The environment, and what this device copies and multiplies at most."""
    recorder.attempt("ceilings", lambda: recorder.put("ceilings", ceilings(recorder)))
    # last, because looking may compile the C++ kernels
    recorder.attempt("backends", lambda: recorder.put("backends", backends.available()))


def ceilings(recorder: Recorder) -> dict[str, float]:
    """Measured copy bandwidth in bytes/s and matrix products in operations/s."""
    sizes, device = recorder.sizes, recorder.device
    found = {"copy_bytes_per_second": traffic.copy_bandwidth(device, sizes.copy_bytes)}
    for name in ("fp32", *sizes.dtypes):
        dtype = cases.DTYPES[name] or torch.float32
        found[f"{name}_operations_per_second"] = traffic.product_rate(device, dtype, sizes.product)
    print(", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
    return found
