"""What `fastres bench` prints: the table of a sweep, and two files beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..training.errors import UsageError
from . import choice, gate, largest_batch, largest_sweep, rows
from .compare import FAILED, REFUSED
from .store import Store
from .table import print_table, without_empty_columns


def results(store: Store) -> int:
    """Print a sweep; 1 where an implementation of fastres, or a whole case, has no speed."""
    told, code = [], 0
    for name, case in store.cases.items():
        told.append([name, *[""] * (len(rows.HEADER) - 1)])
        told.extend([f"  {row[0]}", *row[1:]] for row in rows.table_rows(case))
        for implementation, row in case["implementations"].items():
            if row["status"] in (FAILED, REFUSED) and choice.is_ours(implementation):
                code = 1
        if not rows.measured_names(case):
            code = 1
    if store.cases:
        print_table(_title(store.cases), *without_empty_columns(rows.HEADER, told))
    if store.largest:
        told = largest_sweep.table_rows(store.largest)
        print_table("the largest batch that fits", largest_batch.HEADER, told)
    for line in rows.notes(store.cases):
        print(line)
    for name, reason in store.not_reached.items():
        print(f"not reached: {name}: {reason}")
    if store.not_reached:
        print("the same command goes on with these")
    print(f"results: {store.path} and {store.path.with_suffix('.csv').name}")
    return code


def _title(cases: dict[str, Any]) -> str:
    """The machine of the first case that says where it was measured."""
    for case in cases.values():
        facts = case["environment"]
        if "device" in facts:
            device = facts["device"]
            threads = device["cpu"]["threads"]
            count = f"{threads} thread" + ("" if threads == 1 else "s")
            return f"{device['name']}, {count}, torch {facts['torch']}"
    return "nothing was measured"


def files(old: Path, new: Path, threshold: float) -> int:
    """Print what became slower from one results file to the other; as `comparison`."""
    return comparison(gate.load(old), gate.load(new), threshold)


def comparison(old: dict[str, Any], new: dict[str, Any], threshold: float) -> int:
    """Print the cases of two files beside each other; 1 where fastres became slower for certain.

    Raises:
        UsageError: they have no measured case in common.
    """
    found, missing = gate.compare(old, new, threshold)
    if not found:
        raise UsageError("compare: the files have no measured case in common")
    title = f"slower by more than {100 * threshold:g}% is a regression, if all of the interval is"
    print_table(title, gate.HEADER, gate.table_rows(found))
    for line in gate.conditions(old, new):
        print(f"differs: {line}")
    for name in missing:
        print(f"not in the new file: {name}")
    failed = [row for row in found if row.failed]
    for row in failed:
        print(f"REGRESSION: {row.case}: {row.implementation}: {row.verdict} {row.reason}".rstrip())
    open_ones = [row for row in found if row.decides and row.verdict in (gate.UNCERTAIN, gate.FEW)]
    if open_ones:
        print(f"not decided: {len(open_ones)} of fastres, for noise or too few rounds")
    if not failed:
        print("no regression of fastres is certain")
    return 1 if failed else 0
