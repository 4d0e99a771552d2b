"""Results files with made-up figures, in the form that fastres bench and fastres profile write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastres.bench.peers import CONVOLUTIONS, EAGER, FUSED

GPU = {"type": "cuda", "name": "Made-up GPU", "driver": "1.2", "cpu": {"threads": 4}}
CPU = {"type": "cpu", "name": "Made-up CPU", "cpu": {"model": "Made-up CPU", "threads": 4}}


def environment(device: dict[str, Any] = GPU, date: str = "2026-01-02", commit: str = "abcdef"):
    return {
        "device": device,
        "date": f"{date}T03:04:05+00:00",
        "commit": commit,
        "command": "fastres bench train",
        "torch": "2.99",
    }


def ratio(median: float, *, spread: float = 0.02, noisy: bool = False) -> dict[str, Any]:
    return {
        "median": median,
        "low95": median * (1 - spread),
        "high95": median * (1 + spread),
        "noisy": noisy,
    }


def run(seconds: float, batch: int, faster: float | None, *, peak=None, saved=None, noisy=False):
    row = {
        "status": "measured",
        "seconds": {
            "median": seconds,
            "lower_quartile": 0.99 * seconds,
            "upper_quartile": 1.01 * seconds,
            "rounds": [seconds] * 7,
        },
        "per_second": batch / seconds,
        "make_seconds": 1.0,
        "first_call_seconds": 2.0,
        "times_faster_than": {},
    }
    if faster is not None:
        row["times_faster_than"][EAGER] = ratio(faster, noisy=noisy)
    if peak is not None:
        row["memory"] = {"peak_bytes": peak, "saved_bytes": saved}
    return row


def case(
    model: str = "resnet50", batch: int = 16, size: int = 224, *, kind: str = "train",
    faster: float = 1.5, noisy: bool = False, device=GPU, date: str = "2026-01-02",
    others: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    eager = 0.001 * batch * size / 224
    peak = 10**7 * batch
    return {
        "workload": f"{model} fp32, batch {batch}, {size}x{size}",
        "kind": kind,
        "model": model,
        "image_size": size,
        "batch": batch,
        "dtype": "float32",
        "device": device["type"],
        "optimizer": False,
        "floor": {"bytes": 1, "flops": 1, "seconds": eager / 4, "machine": device["name"]},
        "implementations": {
            EAGER: run(eager, batch, None, peak=peak, saved=peak // 2),
            FUSED: run(
                eager / faster, batch, faster, peak=0.6 * peak, saved=0.3 * peak, noisy=noisy
            ),
            CONVOLUTIONS: run(eager / 2, batch, 2.0),
            **(others or {}),
        },
        "environment": environment(device, date),
    }


def named(*cases: dict[str, Any]) -> dict[str, Any]:
    """By the names that fastres bench gives."""
    return {
        f"{one['kind']} {one['model']} fp32, batch {one['batch']}, {one['image_size']}px": one
        for one in cases
    }


def profile() -> dict[str, Any]:
    rows = [
        ("conv3x3", 10, 0.004, 4e9, 1.5e12),
        ("expand", 5, 0.003, 9e9, 6e11),
        ("bn_act", 5, 0.002, 8e9, 0),
        ("argmax", 1, 0.001, None, None),
    ]
    return {
        "model": "resnet50",
        "batch": 16,
        "dtype": "bfloat16",
        "image_size": 224,
        "device": "cuda",
        "step_seconds": 0.0125,
        "machine": {
            "name": "Made-up GPU",
            "bytes_per_second": 5e12,
            "flops_per_second": 1e15,
            "source": "invented",
        },
        "operators": [
            {
                "operator": name, "calls": calls, "seconds": seconds, "bytes": moved,
                "flops": flops, "floor_seconds": None if moved is None else moved / 5e12,
            }
            for name, calls, seconds, moved, flops in rows
        ],
        "parts": [
            {"part": "layer1", "calls": 20, "seconds": 0.009, "floor_seconds": 0.004},
            {"part": "head", "calls": 1, "seconds": 0.001, "floor_seconds": 0.0},
        ],
        "unprofiled_seconds": 0.0115,
        "trace": "step.json",
        "environment": environment(),
    }  # fmt: skip


def largest() -> dict[str, Any]:
    return {
        "model": "resnet50",
        "dtype": "fp32",
        "image_size": 224,
        "device": "cuda",
        "implementations": {
            EAGER: {"batch": 48, "tried": [[32, True, None], [64, False, "no memory"]]},
            FUSED: {"batch": 96, "tried": [[96, True, None]], "limit": "cap"},
            "JAX": {"batch": None, "tried": [], "limit": None, "reason": "JAX is not installed"},
        },
        "environment": environment(),
    }


def everything() -> dict[str, Any]:
    """A file with something for every section but the history."""
    refused = {"status": "refused", "reason": "gradient of <b>conv1</b> & more is off"}
    sweep = [case(batch=batch) for batch in (1, 4, 64)]
    depths = [case(model, batch=4) for model in ("resnet18", "resnet152")]
    sizes = [case(batch=4, size=size) for size in (128, 288)]
    parts = [
        case("bottleneck/layer1", kind="block"),
        case("bn_act/layer1", kind="op", noisy=True, faster=1.1),
    ]
    cases = named(
        case(others={"torch.compile": refused}), *sweep, *depths, *sizes, *parts,
        case(kind="infer", batch=1, noisy=True),
    )  # fmt: skip
    return {
        "cases": cases,
        "profiles": {"resnet50": profile()},
        "largest_batch": {"resnet50": largest()},
        "sweep": {"not_reached": {"train resnet101 fp32, batch 16, 224px": "the time is up"}},
    }


def write(folder: Path, content: Any, name: str = "results.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
