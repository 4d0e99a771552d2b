"""Distributed training runs to which something happens; prints how each rank ended as JSON.

    distributed_run.py FOLDER [SCENARIO...]
    torchrun --nproc-per-node 2 --max-restarts 1 distributed_run.py --restarted OUT

Every scenario is a run of `fastres train` in two forked processes, each of them in a folder of its
own, as on two machines that share no file system. The second form is one rank of a run whose rank
1 dies at step 9 (of 12), once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from helpers.forked import Ended, run_ranks
from training_runs import COMMAND

from fastres import cli
from fastres.training import engine, train  # noqa: F401 (imported before the forks)
from fastres.training.errors import DataError

TIMEOUT = 4  # seconds until a silent process counts as dead
STEP = 3  # at which something happens to rank 1


def die() -> None:
    os._exit(9)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def broken_image() -> None:
    raise DataError("a.png is broken")


def nothing() -> None:
    pass


def at_step(event: Callable[[], None], number: int = STEP) -> None:
    """The event, on rank 1, before its step of this number."""
    step = engine.Trainer._step

    def eventful(self, images, labels):
        if self.world.rank == 1 and self.progress.iteration == number - 1:
            event()
        return step(self, images, labels)

    engine.Trainer._step = eventful


def command(event: Callable[[], None], *options: str) -> Callable[[int], int]:
    """What each rank does: a short run with the event in it."""

    def work(rank: int) -> int:
        at_step(event)
        return cli.main([*COMMAND, "--timeout", str(TIMEOUT), "--out", "run", *options])

    return work


def stopped_and_resumed(here: Path) -> list[Ended]:
    """SIGTERM to rank 1 alone, then the rest of the run."""
    ended = run_ranks(2, command(terminate), here)
    return ended + run_ranks(2, command(nothing, "--resume", "auto"), here)


def refused(here: Path) -> list[Ended]:
    """A fresh run where one is already, and where another one is at work."""
    run = here / "rank0" / "run"
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(b"")
    ended = run_ranks(2, command(nothing), here)
    return ended + run_ranks(2, command(nothing, "--resume", "auto"), here)


def elsewhere(here: Path) -> list[Ended]:
    """The machines have changed places since the run was stopped."""
    run = here / "rank1" / "run"
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(b"")
    return run_ranks(2, command(nothing, "--resume", "auto"), here)


SCENARIOS: dict[str, Callable[[Path], list[Ended]]] = {
    "whole": lambda here: run_ranks(2, command(nothing), here),
    "dies": lambda here: run_ranks(2, command(die), here),
    "hangs": lambda here: run_ranks(2, command(hang), here),
    "broken image": lambda here: run_ranks(2, command(broken_image), here),
    "alone": lambda here: run_ranks(2, command(nothing), here, absent=(1,)),
    "stopped and resumed": stopped_and_resumed,
    "refused": refused,
    "elsewhere": elsewhere,
}


def restarted(out: str) -> int:
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        at_step(die, 9)
    return cli.main([*COMMAND, "--resume", "auto", "--out", out])


def main() -> None:
    if sys.argv[1] == "--restarted":
        code = restarted(sys.argv[2])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as fastres/__main__.py does
    folder, *names = sys.argv[1:]
    results = {}
    for name in names or SCENARIOS:
        started = time.monotonic()
        ended = SCENARIOS[name](Path(folder) / name)
        results[name] = {
            "seconds": time.monotonic() - started,
            "ended": [one._asdict() for one in ended],
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
