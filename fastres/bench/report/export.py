"""Cases as CSV: a row an implementation."""

from __future__ import annotations

import csv
import io

from .records import Results

COLUMNS = (
    "file", "device", "kind", "case", "model", "dtype", "batch", "image_size", "note",
    "implementation", "status", "reason", "median_seconds", "lower_quartile_seconds",
    "upper_quartile_seconds", "per_second", "rounds", "times_faster_than_eager", "low95", "high95",
    "noisy", "peak_bytes", "saved_bytes", "floor_seconds", "make_seconds", "first_call_seconds",
    "date", "commit",
)  # fmt: skip


def rows(results: Results) -> str:
    """With a header; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in results.cases:
        of_case = [case.file, case.device, case.kind, case.name, case.model, case.dtype, case.batch]
        of_case += [case.image_size, case.note]
        when = [case.environment.get("date"), case.environment.get("commit")]
        for run in case.runs.values():
            low, high = run.quartiles or (None, None)
            ratio = run.ratio
            spread = [None] * 4
            if ratio is not None:
                spread = [ratio.median, ratio.low, ratio.high, int(ratio.noisy)]
            writer.writerow(
                [
                    *of_case, run.name, run.status, run.reason, run.seconds, low, high,
                    run.per_second, run.rounds or None, *spread, run.peak_bytes, run.saved_bytes,
                    case.floor_seconds, run.make_seconds, run.first_call_seconds, *when,
                ]
            )  # fmt: skip
    return text.getvalue()
