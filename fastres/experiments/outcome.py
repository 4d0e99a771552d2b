"""An experiment's numbers from its runs' folders, as CSV files, a table and plain sentences."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastres.bench import results
from fastres.experiments.one_run import RESULT_FILE
from fastres.experiments.plan import Network, Plan, Run
from fastres.training.errors import TrainingError, UsageError

CURVE_COLUMNS = (
    "network", "seed", "epoch", "iteration", "train_loss", "train_error", "test_loss", "test_error",
)  # fmt: skip
FINAL_COLUMNS = ("network", "seed", "train_error", "train_error_eval", "test_error")
ERRORS = FINAL_COLUMNS[2:]
HEADINGS = {
    "train_error": "training error, running",
    "train_error_eval": "training error, eval mode",
    "test_error": "test error",
}


@dataclass(frozen=True)
class Outcome:
    """A finished run: its curve (a row of CURVE_COLUMNS per epoch) and its final errors in %.

    `train_error` is taken on the augmented batches as they are trained on, over the last epoch;
    `train_error_eval` on all training images afterwards, without augmentation, in eval mode.
    """

    run: Run
    curve: list[dict[str, Any]]
    errors: dict[str, float]


def collect(runs: Sequence[Run]) -> list[Outcome]:
    """The outcome of every run, in the order given. Raises UsageError naming a broken file."""
    return [_read(run) for run in runs]


def _read(run: Run) -> Outcome:
    curve = []
    log, result = run.folder / "epochs.csv", run.folder / RESULT_FILE
    try:
        with open(log, newline="") as file:
            for row in csv.DictReader(file):
                curve.append(
                    {
                        "network": run.network.label,
                        "seed": run.seed,
                        "epoch": int(row["epoch"]),
                        "iteration": int(row["iteration"]),
                        "train_loss": float(row["train_loss"]),
                        "train_error": 100 - float(row["train_top1"]),
                        "test_loss": float(row["loss"]),
                        "test_error": 100 - float(row["top1"]),
                    }
                )
        final = json.loads(result.read_text())
        errors = {
            "train_error": curve[-1]["train_error"],
            "train_error_eval": float(final["train_error_eval"]),
            "test_error": curve[-1]["test_error"],
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{run.name}: {log} or {result.name} beside it is missing or damaged ({error!r}); "
            "delete the run's folder to train it again"
        ) from None
    return Outcome(run, curve, errors)


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None of one value), least and greatest over the seeds."""

    mean: float
    std: float | None
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        std = stdev(values) if len(values) > 1 else None
        return cls(mean(values), std, min(values), max(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


def summarise(
    networks: Sequence[Network], outcomes: Sequence[Outcome]
) -> list[tuple[Network, dict[str, Spread]]]:
    """Each network's errors over its seeds."""
    table = []
    for network in networks:
        own = [outcome.errors for outcome in outcomes if outcome.run.network == network]
        table.append((network, {name: Spread.of([e[name] for e in own]) for name in ERRORS}))
    return table


def write(plan: Plan, outcomes: Sequence[Outcome], findings: Sequence[str], machine: str) -> None:
    """curves.csv, finals.csv, table.csv and table.md, with findings, in the experiment's folder."""
    out, table = plan.out, summarise(plan.networks, outcomes)
    curves = [row for outcome in outcomes for row in outcome.curve]
    finals = [{"network": o.run.network.label, "seed": o.run.seed, **o.errors} for o in outcomes]
    write_csv(out / "curves.csv", CURVE_COLUMNS, curves)
    write_csv(out / "finals.csv", FINAL_COLUMNS, finals)
    parts = ("mean", "std", "least", "greatest")
    columns = ("network", "seeds", *(f"{name}_{part}" for name in ERRORS for part in parts))
    write_csv(
        out / "table.csv",
        columns,
        [
            {"network": network.label, "seeds": len(plan.seeds)}
            | {f"{n}_{part}": getattr(s, part) for n, s in errors.items() for part in parts}
            for network, errors in table
        ],
    )
    listed = "".join(f"- {sentence}\n" for sentence in findings)
    text = f"# {plan.title}\n\n{markdown(plan, table)}\n{listed}\nTrained on {machine}.\n"
    write_text(out / "table.md", text)


def markdown(plan: Plan, table: Sequence[tuple[Network, dict[str, Spread]]]) -> str:
    """The table for a document, in per cent."""
    lines = [
        "| network | " + " | ".join(f"{HEADINGS[name]} (%)" for name in ERRORS) + " |",
        "|---|" + "---:|" * len(ERRORS),
    ]
    for network, errors in table:
        lines.append(f"| {network.label} | " + " | ".join(str(errors[n]) for n in ERRORS) + " |")
    return "\n".join(lines) + f"\n\n{caption(plan)}\n"


def caption(plan: Plan) -> str:
    """What the numbers are of, in one line."""
    count = len(plan.seeds)
    spread = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
    return f"{data_words(plan)}; {plan.recipe['iterations']:,} iterations of batch " + (
        f"{plan.recipe['batch_size']}; {spread}."
    )


def data_words(plan: Plan) -> str:
    """The images, so that nobody takes procedural ones for CIFAR-10's."""
    if plan.data == "procedural":
        seed, count = plan.recipe["data_seed"], plan.recipe["num_images"]
        return f"Procedural image set ({count:,} images generated from seed {seed}, not CIFAR-10)"
    return "CIFAR-10"


def compare(
    outcomes: Sequence[Outcome], above: Network, below: Network, name: str = "train_error"
) -> str:
    """Whether one network's error is above another's, seed by seed, in one sentence."""
    errors = {(o.run.network, o.run.seed): o.errors[name] for o in outcomes}
    seeds = sorted({o.run.seed for o in outcomes})
    gaps = [errors[above, seed] - errors[below, seed] for seed in seeds]
    count = sum(gap > 0 for gap in gaps)
    each = ", ".join(f"{gap:+.2f}" for gap in gaps)
    return (
        f"{HEADINGS[name]}: {above.label} above {below.label} with {count} of {len(gaps)} seeds, "
        f"by {Spread.of(gaps)} points ({each})"
    )


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Replaces a CSV file in one step; numbers are written so that they read back equal."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step. Raises TrainingError when the disk is full."""
    try:
        results.replace(path, text)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}") from None
