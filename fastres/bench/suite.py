"""Stages in order within a budget of time, each in a process of its own, each leaving its results.

A stage that raises, crashes the interpreter or hangs costs its own results from that point on and
nothing else. `suite.json` is written anew after every stage.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import results

OK, FAILED, TIMED_OUT, NOT_REACHED = "ok", "failed", "timed out", "not reached"
_GRACE = 10.0  # seconds between what a stage is told it has and when it is stopped


@dataclass(frozen=True)
class Stage:
    """One process of the suite.

    Attributes:
        name: also the name of its files: NAME.json (written by the stage) and NAME.log.
        command: the command line, given the seconds the stage may take.
        share: of the whole budget, at most.
        minimum: seconds below which it is not worth starting; kept free by the stages before it.
        spare: it takes what the others leave: nothing is kept free for it.
        environment: variables that it has beside those of the suite.
    """

    name: str
    command: Callable[[float], Sequence[str]]
    share: float
    minimum: float = 20.0
    spare: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def run(
    stages: Sequence[Stage],
    out: Path,
    budget: float,
    facts: dict[str, Any],
    *,
    clock: Callable[[], float] = time.monotonic,
    log: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Run `stages` one after the other; returns a row for each, in `suite.json` with `facts` too.

    Args:
        out: folder for the results, made if it is missing.
        budget: seconds for everything.
        facts: put into suite.json as they are.
        clock, log: time in seconds; told one line for each stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = clock() + budget
    rows = [{"stage": stage.name, "status": NOT_REACHED} for stage in stages]
    _write(out, facts, rows)
    for number, (stage, row) in enumerate(zip(stages, rows, strict=True)):
        left = end - clock()
        kept_free = sum(s.minimum for s in stages[number + 1 :] if not s.spare)
        if left < stage.minimum:
            row["reason"] = (
                f"{max(left, 0):.0f} s were left, it needs at least {stage.minimum:.0f} s"
            )
            log(f"{stage.name}: not reached, {row['reason']}")
        else:
            limit = max(min(stage.share * budget, left - kept_free), stage.minimum)
            log(f"{stage.name}: at most {limit:.0f} s of {left:.0f} s left")
            row.update(_run_one(stage, out, limit))
            log(f"{stage.name}: {row['status']} after {row['wall_seconds']:.0f} s")
        _write(out, facts, rows)
    return rows


def _write(out: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    missing = [row["stage"] for row in rows if row["status"] == NOT_REACHED]
    results.write(out / "suite.json", {**facts, "stages": rows, "not_reached": missing})


def _run_one(stage: Stage, out: Path, limit: float) -> dict[str, Any]:
    """Run one stage; what an older run left of it is removed first."""
    (out / f"{stage.name}.json").unlink(missing_ok=True)
    log_path = out / f"{stage.name}.log"
    started = time.monotonic()
    # short limits leave less, so that a stage always has something
    soft = max(limit - _GRACE, limit / 2)
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}
    with log_path.open("wb") as log:
        try:
            process = subprocess.Popen(
                list(stage.command(soft)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env=variables,
            )  # fmt: skip
        except OSError as error:
            return {"status": FAILED, "wall_seconds": 0.0, "reason": str(error)}
        code = _wait(process, limit)
    row = {"wall_seconds": time.monotonic() - started, "exit_code": code}
    if code is None:
        row.update(status=TIMED_OUT, reason=f"stopped after {limit:.0f} s")
    elif code == 0:
        row["status"] = OK
    else:
        row.update(status=FAILED, reason=_tail(log_path))
    if (out / f"{stage.name}.json").exists():
        row["results"] = f"{stage.name}.json"
        missing = list(sweep_of(out, stage.name).get("not_reached", {}))
        if missing:
            row["cases_not_reached"] = missing
    return row


def sweep_of(out: Path, name: str) -> dict[str, Any]:
    """What `fastres bench` says about itself in a stage's results; {} where another wrote them."""
    try:
        content = results.read(out / f"{name}.json")
    except ValueError:
        return {}
    return content.get("sweep", {}) if isinstance(content, dict) else {}


def collect(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The cases, profiles and largest batches of all stages in one, as `fastres report` reads them.

    A case that two stages measured has the second one's name behind its own.
    """
    found: dict[str, Any] = {"cases": {}, "profiles": {}, "largest_batch": {}}
    for name in names:
        try:
            content = results.read(out / f"{name}.json")
        except ValueError:
            continue
        for part, entries in found.items():
            for title, entry in content.get(part, {}).items():
                entries[f"{title}, {name}" if title in entries else title] = entry
    return found


def _wait(process: subprocess.Popen, limit: float) -> int | None:
    """The exit code; None if the process and its children were stopped at the limit."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # also compilers and workers that outlive their parent
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(path: Path, characters: int = 1500) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return text[-characters:] or "it said nothing"


def python(*arguments: str) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *arguments]
