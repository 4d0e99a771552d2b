"""Cases of a results file as the rows of a table and of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from .compare import MEASURED
from .peers import EAGER
from .table import duration, size

# rounds below which there is no 95% interval: the extremes are given
FEW = 6
COLUMNS = (
    "case", "kind", "model", "batch", "dtype", "image_size", "device", "optimizer",
    "implementation", "status", "reason", "rounds", "seconds", "lower_quartile", "upper_quartile",
    "minimum", "noisy", "per_second", "times_faster", "times_faster_low95", "times_faster_high95",
    "times_faster_noisy", "make_seconds", "first_call_seconds", "page_faults", "peak_bytes",
    "saved_bytes", "floor_seconds", "times_floor", "commit", "date",
)  # fmt: skip
HEADER = (
    "implementation", "a step", "spread", "items/s", f"x {EAGER}", "rounds", "first call", "memory",
    "x floor", "",
)  # fmt: skip


def measured_names(case: Mapping[str, Any]) -> list[str]:
    """The implementations that have a time, or a peak of memory."""
    found = case["implementations"]
    return [name for name, row in found.items() if row["status"] == MEASURED]


def is_noisy(summary: Mapping[str, Any]) -> bool:
    """Whether times or ratios, as a file has them, are spread too far for one figure."""
    from .timing import NOISY

    return summary.get("noisy", summary["iqr"] / 2 > NOISY * summary["median"])


def table_rows(case: Mapping[str, Any]) -> list[list[str]]:
    """A row for each implementation, by `HEADER`; a range stands where the times are noisy."""
    return [_row(case, name, row) for name, row in case["implementations"].items()]


def _row(case: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> list[str]:
    peak = row.get("memory", {}).get("peak_bytes")
    memory = "" if peak is None else size(peak)
    if "seconds" not in row:
        status = "" if row["status"] == MEASURED else row["status"]
        return [name, status, "", "", "", "", "", memory, "", row.get("reason", "")]
    seconds = row["seconds"]
    low, high = seconds["lower_quartile"], seconds["upper_quartile"]
    spread = f"±{100 * seconds['iqr'] / 2 / seconds['median']:.1f}%"
    if is_noisy(seconds):
        step, spread = f"{duration(low)} to {duration(high)}", f"{spread} noisy"
        rate = f"{_rate(case['batch'] / high)} to {_rate(case['batch'] / low)}"
    else:
        step, rate = duration(seconds["median"]), _rate(row["per_second"])
    first = row.get("first_call_seconds")
    least = (case.get("floor") or {}).get("seconds")
    return [
        name, step, spread, rate,
        _times_faster(name, row), str(seconds["samples"]), "" if first is None else duration(first),
        memory, "" if not least else f"{seconds['median'] / least:.3g}", row.get("reason", ""),
    ]  # fmt: skip


def _rate(per_second: float) -> str:
    return f"{per_second:.4g}" if per_second < 1e4 else f"{per_second:,.0f}"


def _times_faster(name: str, row: Mapping[str, Any]) -> str:
    ratio = row.get("times_faster_than", {}).get(EAGER)
    if ratio is None:
        return "1" if name == EAGER else ""
    if is_noisy(ratio):
        return f"{ratio['low95']:.2f} to {ratio['high95']:.2f} noisy"
    return f"{ratio['median']:.3f} [{ratio['low95']:.2f}, {ratio['high95']:.2f}]"


def notes(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What has to be known about the figures: whether the machine was quiet, and few rounds."""
    ratios = noisy = few = 0
    for case in cases.values():
        for name, row in case["implementations"].items():
            if "seconds" not in row:
                continue
            few += row["seconds"]["samples"] < FEW
            found = row.get("times_faster_than", {}).get(EAGER)
            judged = row["seconds"] if found is None else found
            if name == EAGER and len(measured_names(case)) > 1:
                continue
            ratios += 1
            noisy += is_noisy(judged)
    told = []
    if noisy:
        told.append(
            f"NOISY: {noisy} of {ratios} figures are spread by more than 5% to either side, or "
            f"have a wide interval; they are ranges, no result. {_load(cases)}Measure again on a "
            "quiet machine."
        )
    elif ratios and not few:
        told.append(f"quiet: the middle half of every ratio is within 5% ({ratios} of {ratios})")
    if few:
        told.append(
            f"{few} row(s) have fewer than {FEW} rounds: brackets hold their extremes, which is "
            "no 95% interval; more --minutes gives more rounds"
        )
    return told


def _load(cases: Mapping[str, Mapping[str, Any]]) -> str:
    for case in cases.values():
        facts = case.get("environment", {})
        load = facts.get("load_average")
        cpus = facts.get("device", {}).get("cpu", {}).get("logical_cpus")
        if load and cpus and load[0] > cpus:
            return f"The load was {load[0]:g} on {cpus} CPUs. "
    return ""


def csv_text(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each implementation of each case, by `COLUMNS`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, case in cases.items():
        for implementation, row in case["implementations"].items():
            writer.writerow(_csv_row(name, case, implementation, row))
    return text.getvalue()


def _csv_row(
    name: str, case: Mapping[str, Any], implementation: str, row: Mapping[str, Any]
) -> dict[str, Any]:
    seconds = row.get("seconds", {})
    ratio = row.get("times_faster_than", {}).get(EAGER, {})
    least = (case.get("floor") or {}).get("seconds")
    facts = case.get("environment", {})
    memory = row.get("memory", {})
    median = seconds.get("median")
    return {
        "case": name,
        **{key: case.get(key) for key in COLUMNS[1:8]},
        "implementation": implementation,
        "status": row["status"],
        "reason": row.get("reason"),
        "rounds": seconds.get("samples"),
        "seconds": median,
        **{key: seconds.get(key) for key in ("lower_quartile", "upper_quartile", "minimum")},
        "noisy": is_noisy(seconds) if seconds else None,
        **{key: row.get(key) for key in ("per_second", "make_seconds", "first_call_seconds")},
        "times_faster": ratio.get("median"),
        "times_faster_low95": ratio.get("low95"),
        "times_faster_high95": ratio.get("high95"),
        "times_faster_noisy": is_noisy(ratio) if ratio else None,
        "page_faults": row.get("page_faults"),
        "peak_bytes": memory.get("peak_bytes"),
        "saved_bytes": memory.get("saved_bytes"),
        "floor_seconds": least,
        "times_floor": median / least if median and least else None,
        "commit": facts.get("commit"),
        "date": facts.get("date"),
    }
