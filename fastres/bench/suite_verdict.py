"""What the suite's results say about the speed that is wanted of a ResNet-50 training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results
from .peers import EAGER

# batch 256, bf16, channels_last, SGD included, on an H200
WANTED_RATE = 9000.0
WANTED = {"torch.compile": 2.0, EAGER: 2.5}
_OURS = ("fastres CUDA graph", "fastres")
_GAPS = 5


def verdict(out: Path, stages: Sequence[str]) -> dict[str, Any]:
    """The best of our steps in the results of `stages`, beside what is wanted of it.

    Every implementation counts with the best that any of the stages measured of it.

    `met` is None where something was not measured. The largest gaps of single operators to their
    floors are named where the kernels stage got so far.
    """
    rates = _rates(out, stages)
    ours = max((name for name in rates if name in _OURS), key=rates.get, default=None)
    checks = []
    if ours is not None:
        checks.append({"what": "images/s", "got": rates[ours], "wanted": WANTED_RATE})
        for peer, wanted in WANTED.items():
            got = rates[ours] / rates[peer] if peer in rates else None
            checks.append({"what": f"x {peer}", "got": got, "wanted": wanted})
    for check in checks:
        check["met"] = None if check["got"] is None else check["got"] >= check["wanted"]
    states = [check["met"] for check in checks] or [None]
    met = False if False in states else None if None in states else True
    found: dict[str, Any] = {"met": met, "implementation": ours, "checks": checks}
    operators = _parts(out, "kernels").get("operators", [])
    found["largest_gaps"] = [
        {name: row[name] for name in ("operator", "calls", "gap_seconds", "floor_seconds")}
        for row in operators[:_GAPS]
    ]
    return found


def _parts(out: Path, stage: str) -> dict[str, Any]:
    return results.read(out / f"{stage}.json").get("parts", {})


def _rates(out: Path, stages: Sequence[str]) -> dict[str, float]:
    """Images per second of each implementation, the best over the stages."""
    rates: dict[str, float] = {}
    for stage in stages:
        for case in results.read(out / f"{stage}.json").get("cases", {}).values():
            for name, row in case["implementations"].items():
                rates[name] = max(row.get("per_second", 0.0), rates.get(name, 0.0))
    return {name: rate for name, rate in rates.items() if rate}


def lines(found: dict[str, Any]) -> list[str]:
    """The verdict in words."""
    words = {True: "met", False: "NOT met", None: "not known"}
    if not found["checks"]:
        return ["verdict: not known: no training step of ours was measured"]
    told = [f"verdict: {words[found['met']]} ({found['implementation']})"]
    for check in found["checks"]:
        got = "not measured" if check["got"] is None else f"{check['got']:.4g}"
        told.append(f"  {check['what']}: {got}, wanted {check['wanted']:g}: {words[check['met']]}")
    for row in found["largest_gaps"]:
        told.append(f"  gap {row['gap_seconds'] * 1e3:.3f} ms a step: {row['operator']}")
    return told
