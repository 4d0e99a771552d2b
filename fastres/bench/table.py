"""Results as a table on a terminal: with rich where it is installed, else aligned text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from .compare import Comparison
from .peers import EAGER
from .timing import Summary


def duration(seconds: float) -> str:
    """Three digits in s, ms or us."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError(seconds)


def size(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.0f} MiB"


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """One row an implementation: time, spread, speed, ratio to eager channels_last, page faults
    a step, memory. Where the rounds are noisy ranges stand for figures."""
    rows = []
    for name, entry in comparison.entries.items():
        if not entry.samples:
            rows.append([name, entry.status, "", "", "", "", entry.reason or ""])
            continue
        summary = Summary.of(entry.samples)
        ratio = comparison.ratio(name, EAGER)
        peak = entry.memory.get("peak_bytes")
        rows.append(
            [
                name,
                "noisy" if summary.noisy else duration(summary.median),
                f"{duration(summary.lower_quartile)} .. {duration(summary.upper_quartile)}",
                "" if summary.noisy else f"{comparison.workload.batch / summary.median:.4g}",
                "1" if name == EAGER or ratio is None else str(ratio),
                "" if entry.page_faults is None else f"{entry.page_faults:.0f}",
                "" if peak is None else size(peak),
            ]
        )
    return rows


COMPARISON_HEADER = [
    "implementation", "median", "quartiles", "items/s", f"x {EAGER} [95%]", "faults", "peak memory",
]  # fmt: skip


def comparison_table(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print `comparison`."""
    rounds = max((len(entry.samples) for entry in comparison.entries.values()), default=0)
    title = (
        f"{comparison.workload.name} on {comparison.workload.device}, {rounds} interleaved rounds"
        f" of {comparison.calls_per_sample} call(s)"
    )
    print_table(title, COMPARISON_HEADER, comparison_rows(comparison), file)


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], file: TextIO | None = None
) -> None:
    """Print rows under a title; the first column to the left, the others to the right.

    A row of which only the first cell has text is a heading, and as wide as it likes.
    """
    file = file or sys.stdout
    cells = [[str(cell) for cell in row] for row in rows]
    if file.isatty() and not any(map(_is_heading, cells)):
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            # as text: what stands in brackets is no markup of ours
            table = Table(title=Text(title), title_justify="left")
            for number, name in enumerate(header):
                table.add_column(Text(name), justify="left" if number == 0 else "right")
            for row in cells:
                table.add_row(*map(Text, row))
            Console(file=file).print(table)
            return
    file.write(plain_table(title, header, cells))
    file.flush()


def plain_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text; a last column that is long (a reason) does not widen the others."""
    others = [row for row in rows if not _is_heading(row)]
    widths = [max([len(name), *(len(row[i]) for row in others)]) for i, name in enumerate(header)]
    widths[-1] = len(header[-1])
    lines = [title]
    for row in [list(header), *rows]:
        if _is_heading(row):
            lines.append(row[0])
            continue
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *others]).rstrip())
    return "\n".join(lines) + "\n"


def _is_heading(row: Sequence[str]) -> bool:
    return len(row) > 1 and row[0] != "" and not any(row[1:])


def without_empty_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """`header` and `rows` without the columns in which no row has text."""
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
