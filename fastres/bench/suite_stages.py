"""What the stages of the suite measure; each writes its results after every part."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import backends
from . import cases, environment, memory, results, table, traffic
from .compare import MEASURED, Comparison, describe
from .peers import EAGER, FUSED
from .timing import Summary
from .workload import Workload

_GRAPHS = ("eager CUDA graph", "fastres CUDA graph")


@dataclass(frozen=True)
class Sizes:
    """How large and how long."""

    batch: int
    image: int
    cifar_batch: int
    rounds: int
    operator_batch: int
    operator_rounds: int
    layers: tuple[str, ...]
    convolutions: tuple[str, ...]
    copy_bytes: int
    product: int
    compiler: str
    dtypes: tuple[str, ...]
    deep: str
    shallow: str
    compiled: int | None  # calls of a network whose kernels are compiled ahead, None: all
    patience: float  # scales how long is waited for a compiler, and what a part needs at least


FULL = Sizes(
    256, 224, 128, 30, 128, 15,
    tuple(cases.ACTIVATIONS), tuple(cases.CONVOLUTIONS),
    2**31, 8192, "torch.compile", ("bf16", "fp16"), "resnet50", "resnet18", None, 1.0,
)  # fmt: skip
SMOKE = Sizes(
    4, 32, 4, 3, 1, 3,
    ("layer4",), ("layer4 3x3",),
    2**22, 128, "torch.compile (aot_eager)", ("fp32", "bf16"), "bottleneck14", "basic10", 1, 0.1,
)  # fmt: skip


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


def compare_training(
    recorder: Recorder, make: Callable[[int], Workload], batch: int, compile_seconds: float
) -> None:
    """Time a training step against every peer, those that compile last; writes after each wave.

    Where the baseline does not fit into memory the batch is halved, which is recorded.
    """
    comparison, batch = _fitting(make, batch)
    key, rounds = comparison.workload.name, recorder.sizes.rounds

    def wave() -> None:
        # a part of what is left, so that the waves after this one have their turn
        comparison.measure(rounds, seconds=max(recorder.left / 3, 2.0))
        recorder.put(key, comparison.as_dict())

    comparison.prepare(FUSED)
    _measure_memory(comparison)
    wave()
    comparison.prepare(*_GRAPHS, limit=max(recorder.left / 2, 5.0))
    _measure_memory(comparison)
    wave()
    patience = recorder.sizes.patience
    limit = min(compile_seconds * patience, recorder.left - 10 * patience)
    if compile_seconds and limit > compile_seconds * patience / 4:
        comparison.prepare(recorder.sizes.compiler, limit=limit)
        _measure_memory(comparison)
        wave()
    else:
        reason = f"{recorder.left:.0f} s left, {compile_seconds:.0f} s meant for compiling"
        row = {"status": "not reached", "reason": reason}
        found = comparison.as_dict()
        found["implementations"][recorder.sizes.compiler] = row
        recorder.put(key, found)
    table.comparison_table(comparison)


def _fitting(make: Callable[[int], Workload], batch: int) -> tuple[Comparison, int]:
    while True:
        try:
            comparison = Comparison(make(batch), log=lambda line: print(line, flush=True))
            comparison.prepare()
            return comparison, batch
        except torch.OutOfMemoryError:
            if batch < 2:
                raise
        # outside of the handler, which holds the frames and with them their tensors
        comparison = None
        torch.cuda.empty_cache()
        batch //= 2
        print(f"out of memory: trying batch {batch}", flush=True)


def _measure_memory(comparison: Comparison) -> None:
    for name, entry in comparison.entries.items():
        if entry.status != MEASURED or entry.memory:
            continue
        try:
            if comparison.workload.device.type == "cuda":
                entry.memory = memory.cuda_peak(entry.step)
            if name in (EAGER, FUSED):
                entry.memory["saved_bytes"] = memory.saved_bytes(entry.step)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            entry.memory = {"reason": describe(error)}


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


def imagenet(which: str, dtype: str, compile_seconds: float = 90.0) -> Callable[[Recorder], None]:
    """Stage: a training step of the "deep" or the "shallow" ImageNet network in one dtype.

    Args:
        compile_seconds: meant for torch.compile; 0 leaves it out.
    """

    def stage(recorder: Recorder) -> None:
        sizes = recorder.sizes
        name = getattr(sizes, which)

        def make(batch: int) -> Workload:
            return cases.network(
                name, batch, sizes.image, dtype, device=recorder.device, optimizer=True
            )

        recorder.attempt(
            f"{name} {dtype}",
            lambda: compare_training(recorder, make, sizes.batch, compile_seconds),
        )

    return stage


def cifar(recorder: Recorder) -> None:
    """Stage: training steps of the CIFAR networks."""
    sizes = recorder.sizes
    for name in ("resnet20", "resnet56"):
        for dtype in ("bf16", "fp32"):

            def make(batch: int, name: str = name, dtype: str = dtype) -> Workload:
                return cases.network(name, batch, 32, dtype, device=recorder.device, optimizer=True)

            # the deep one takes three times as long to compile and has nothing else in it
            seconds = 50.0 if name == "resnet20" else 0.0
            recorder.attempt(
                f"{name} {dtype}",
                partial(compare_training, recorder, make, sizes.cifar_batch, seconds),
            )


def operators(recorder: Recorder) -> None:
    """Stage: each fused operator beside the unfused, with its bytes and the copy bandwidth."""
    copy = traffic.copy_bandwidth(recorder.device, recorder.sizes.copy_bytes)
    recorder.put("copy_bytes_per_second", copy)
    rows: list[dict[str, Any]] = []
    sizes, dtype = recorder.sizes, recorder.sizes.dtypes[0]
    width = 4 if cases.DTYPES[dtype] is None else 2
    batch = sizes.operator_batch
    planned: list[tuple[Workload, traffic.Cost]] = []
    for layer in sizes.layers:
        for kind in (None, *cases.JOINS):
            workload = cases.join(kind, layer, batch, dtype, device=recorder.device)
            planned.append((workload, traffic.join_cost(kind, layer, batch, width)))
    for layer in sizes.convolutions:
        workload = cases.convolution(layer, batch, dtype, device=recorder.device)
        planned.append((workload, traffic.convolution_cost(layer, batch, width)))
    for workload, cost in planned:
        recorder.attempt(
            workload.name,
            partial(_append_row, rows, recorder, workload, cost, copy),
            minimum=3.0,
        )
        recorder.put("operators", rows)
    header = ["operator", "fastres", "eager", "ratio", "GB/s", "of copy", "Tflop/s"]
    table.print_table(f"forward and backward, {dtype}", header, [_cells(row) for row in rows])


def _append_row(rows: list, *arguments: Any) -> None:
    rows.append(_operator_row(*arguments))


def _operator_row(
    recorder: Recorder, workload: Workload, cost: traffic.Cost, copy: float
) -> dict[str, Any]:
    comparison = Comparison(workload)
    comparison.prepare(FUSED)
    comparison.measure(recorder.sizes.operator_rounds, seconds=max(recorder.left / 4, 1.0))
    row: dict[str, Any] = {"operator": workload.name, "bytes": cost.bytes, "flops": cost.flops}
    for name in (FUSED, EAGER):
        entry = comparison.entries[name]
        found: dict[str, Any] = {"status": entry.status, "reason": entry.reason}
        if entry.samples:
            summary = Summary.of(entry.samples)
            rate = cost.bytes / summary.median
            found.update(
                seconds=summary.as_dict(),
                bytes_per_second=rate,
                fraction_of_copy=rate / copy,
                flops_per_second=cost.flops / summary.median,
            )
        row[name] = found
    ratio = comparison.ratio()
    row["ratio"] = None if ratio is None else ratio.as_dict()
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    ours, eager = row[FUSED], row[EAGER]
    before = [row["operator"]]
    times = [
        table.duration(side["seconds"]["median"]) if "seconds" in side else side["status"]
        for side in (ours, eager)
    ]
    if "seconds" not in ours:
        return [*before, *times, "", "", "", ours["reason"] or ""]
    return [
        *before,
        *times,
        f"{row['ratio']['median']:.2f}",
        f"{ours['bytes_per_second'] / 1e9:.0f}",
        f"{ours['fraction_of_copy']:.2f}",
        f"{ours['flops_per_second'] / 1e12:.1f}",
    ]
