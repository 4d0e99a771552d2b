"""An experiment from its plan to its figures: what is trained already is not trained again."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fastres.bench import environment, results
from fastres.experiments import figures, outcome, pool, responses
from fastres.experiments.outcome import HEADINGS, Outcome
from fastres.experiments.plan import PLAN_FILE, Network, Plan
from fastres.experiments.progress import make_progress
from fastres.training.distributed import choose_device
from fastres.training.errors import TrainingError, UsageError

_LOCK_FILE = ".lock"
_LONG = 5_000  # iterations of each run
_LOCK_PATIENCE = 60.0  # seconds that the runs of a killed experiment may take to end


def run(plan: Plan, jobs: int, response_images: int) -> list[Outcome]:
    """Trains what is left to train, writes the figures and the tables, and prints the findings.

    Raises UsageError if the folder belongs to another experiment or to one that is going on.
    """
    figures.check_matplotlib()
    runs = plan.runs()
    device = choose_device(plan.recipe["device"], 0)
    with _only_one(plan.out) as lock:
        again = plan.settle(environment.record(device))
        progress = make_progress()
        progress.note(f"{plan.title}. {outcome.data_words(plan)}.")
        progress.note(
            f"{_count(len(plan.networks), 'network')}, {_count(len(plan.seeds), 'seed')}, "
            f"{_count(jobs, 'run')} at a time of {_count(plan.threads, 'thread')}, in {plan.out}"
            + (" (goes on)" if again else "")
        )
        if device.type == "cpu" and not again and plan.recipe["iterations"] >= _LONG:
            progress.note("this takes long on a CPU: --quick is a form for two cores")
        pool.run_all(runs, jobs, plan.threads, progress, lock)
        outcomes = outcome.collect(runs)
        found = findings(plan, outcomes)
        outcome.write(plan, outcomes, found, _machine(plan))
        figures.draw_errors(plan, outcomes, plan.out / "errors.png")
        if response_images:
            _respond(plan, outcomes, response_images, device)
    _print_table(plan, outcomes)
    print("\n".join(found))
    print(f"figures, curves.csv, finals.csv, table.csv and table.md: {plan.out}")
    return outcomes


def _machine(plan: Plan) -> str:
    """Where the experiment was started, in words."""
    facts = results.read(plan.out / PLAN_FILE).get("environment", {})
    device = facts.get("device", {}).get("name", "an unknown machine")
    threads = _count(plan.threads, "thread")
    return f"{device}, {threads} a run, torch {facts.get('torch', 'unknown')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@contextmanager
def _only_one(out: Path) -> Iterator[int]:
    """Holds the folder's lock, a file descriptor, which the runs' processes hold as well.

    Raises UsageError while another experiment, or what is left of one, holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TrainingError(f"cannot write {out}: {error.strerror}") from None
    try:
        limit = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= limit:
                    raise UsageError(f"an experiment is going on in {out}") from None
                time.sleep(0.1)
        yield handle
    finally:
        os.close(handle)


def _respond(plan: Plan, outcomes: Sequence[Outcome], images: int, device: torch.device) -> None:
    """responses.csv of every run, responses.png of the networks' means over the seeds."""
    rows, curves = [], []
    split = responses.test_images(outcomes[0].run.config, None)
    for network in plan.networks:
        found = []
        for own in (o.run for o in outcomes if o.run.network == network):
            path = own.folder / "last.pt"
            model, _ = responses.load_network(path)
            one = responses.responses_to(model, split, images, device)
            rows += responses.rows(path.relative_to(plan.out), network.label, one)
            found.append(one)
        curves.append((network.panel, network.line, responses.mean_over(found)))
    outcome.write_csv(plan.out / "responses.csv", responses.COLUMNS, rows)
    count = len(plan.seeds)
    figures.draw_responses(
        "Layer responses after training" + (f", mean of {count} seeds" if count > 1 else ""),
        f"{outcome.data_words(plan)}, {images} test images",
        curves,
        plan.out / "responses.png",
    )


def findings(plan: Plan, outcomes: Sequence[Outcome]) -> list[str]:
    """What the experiment is about, in sentences, whichever way it came out."""
    pairs: list[tuple[Network, Network]] = []
    if plan.experiment == "degradation":
        half = len(plan.networks) // 2
        plain, residual = plan.networks[:half], plan.networks[half:]
        if len(plain) > 1:
            pairs = [(plain[-1], plain[0]), (residual[0], residual[-1])]
        pairs.append((plain[-1], residual[-1]))
    else:
        for index in range(0, len(plan.networks), 3):
            a, b, c = plan.networks[index : index + 3]
            pairs += [(a, b), (b, c)]
    return [
        outcome.compare(outcomes, above, below, name)
        for above, below in pairs
        for name in ("train_error", "train_error_eval")
    ]


def _print_table(plan: Plan, outcomes: Sequence[Outcome]) -> None:
    table = outcome.summarise(plan.networks, outcomes)
    try:
        from fastres.training.reporter import print_table

        print_table(
            plan.title,
            ("network", *(f"{heading} (%)" for heading in HEADINGS.values())),
            [(network.label, *(str(s) for s in errors.values())) for network, errors in table],
        )
        print(outcome.caption(plan))
    except UsageError:  # no rich: the table as it is in table.md
        print(outcome.markdown(plan, table))
