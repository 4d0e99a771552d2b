"""Outcomes as rows of a tuned table, put into the file beside the rows that are there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastres.bench import results
from fastres.kernels import tables
from fastres.tuning.candidates import same
from fastres.tuning.search import Outcome


def row(outcome: Outcome, family: str, versions: dict[str, Any]) -> dict[str, Any]:
    """The row of a measured outcome, for GPUs of this family."""
    key, choice = outcome.task.key, outcome.choice
    before = outcome.before
    if same(choice, outcome.task.choice):
        reason = f"measured: the fastest of {outcome.tried}, as in use before"
    elif before is None:
        reason = f"measured: the fastest of {outcome.tried}; the one in use before was rejected"
    else:
        gain = before / outcome.seconds
        reason = f"measured: {gain:.2f} times as fast as the one in use before, of {outcome.tried}"
    return {
        "operator": key.operator,
        "families": [family],
        "dtypes": [key.dtype],
        "prologue": key.prologue,
        "shape": dict(key.shape),
        "provider": choice.provider,
        "config": dict(choice.config),
        "measured": {
            "microseconds": round(outcome.seconds * 1e6, 3),
            "before_microseconds": None if before is None else round(before * 1e6, 3),
            "calls": outcome.task.calls.total(),
            "versions": versions,
        },
        "reason": reason,
    }


def merge(path: Path, gpu: str, versions: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Put rows into the table at `path`, in one step; rows for other keys stay.

    Raises:
        TableError: there is a table already, and it is malformed or of another GPU.
        OSError: the file cannot be written; it is left alone.
    """
    kept: dict[tuple, dict[str, Any]] = {}
    if path.exists():
        tables.read.cache_clear()  # another tuning may have written since
        found = tables.read(path)
        if found.gpu is None or found.gpu not in gpu:
            raise tables.TableError(f"{path}: gpu must be {gpu!r} or a part of it, got {found.gpu}")
        gpu, kept = found.gpu, {_place(old): old for old in found.rows}
    for new in rows:
        kept[_place(new)] = new
    _write(path, {"gpu": gpu, "versions": versions, "rows": list(kept.values())})


def _place(entry: dict[str, Any]) -> tuple:
    """What a row is for; a later row for the same takes its place."""
    return (
        entry["operator"],
        tuple(entry["families"]),
        tuple(entry["dtypes"]),
        entry.get("prologue"),
        tuple(sorted(entry.get("shape", {}).items())),
    )


def _write(path: Path, table: dict[str, Any]) -> None:
    """A line a row, as in the shipped tables."""
    head = {name: value for name, value in table.items() if name != "rows"}
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in table["rows"])
    fields = "".join(
        f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()
    )
    text = f'{{\n{fields}  "rows": [\n{lines}\n  ]\n}}\n'
    results.replace(path, text)
