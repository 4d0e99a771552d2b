"""Kills a training run again and again (SIGKILL) and compares its end with an uninterrupted one's.

    python tests/fault/killed_run.py [--kills 20] [--seed 6] [--out DIR] [-- OPTION...]

Every life of the run is a forked process of `fastres train --resume auto` that dies at a moment
drawn from the seed: at some call of any function inside the training loop ("call"), at one of the
five places of a save, or, by its parent's hand, after some time ("timer"). When a run comes to its
end before all kills are done, the next ones go into a new run. Prints a line a life and ends with 1
unless weights, momenta, generators and the logs of losses of every run are bitwise the
uninterrupted run's. OPTION... go to `fastres train`, after those of a small synthetic run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training_runs import COMMAND, assert_same_run, rows

from fastres import cli
from fastres.training import checkpoint, engine, train  # noqa: F401 (imported before the forks)

OPTIONS = [*COMMAND, "--save-every", "2", "--epochs", "8"]
IN_A_SAVE = ("write", "fsync", "before-rename", "after-rename", "fsync-folder")


def plan(kills: int, seed: int) -> list[tuple[str, float]]:
    """`kills` moments and when: the n-th call, the n-th save, or seconds."""
    draw = random.Random(seed)
    kinds = [*IN_A_SAVE, "timer", "timer", "timer", "call", "call"]
    found = []
    for index in range(kills):
        kind = kinds[index % len(kinds)]
        if kind == "timer":
            found.append((kind, round(draw.uniform(0.02, 1.0), 3)))
        else:  # a step is some 17,000 calls, and so is a save
            found.append((kind, draw.randint(1, 60_000 if kind == "call" else 3)))
    draw.shuffle(found)
    return found


class _Death:
    """Where a life ends: told to the parent through a pipe, then SIGKILL."""

    def __init__(self, pipe: int, count: float) -> None:
        self.pipe, self.left = pipe, count

    def here(self, where: str) -> None:
        """Counts down; at zero, dies."""
        self.left -= 1
        if self.left == 0:
            os.write(self.pipe, where.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.here(f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}")
        elif event == "c_call":
            self.here(f"{Path(frame.f_code.co_filename).name}: {argument.__qualname__}")


class _HalfWritten:
    """Stands in for the temporary file: dies with half of its bytes on the disk."""

    def __init__(self, death: _Death, path: Any, mode: str) -> None:
        self._death = death
        self._file = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> _HalfWritten:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> None:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._death.here("half of the file written")
        self._file.write(data[half:])


def _arm(moment: str, death: _Death) -> None:
    """Makes this process die at its moment."""
    replace, fsync, run, save = os.replace, os.fsync, engine.Trainer.run, checkpoint.save
    saving = False

    def save_noted(*arguments: Any) -> None:
        nonlocal saving
        saving = True
        save(*arguments)
        saving = False

    def fsync_or_die(handle: int) -> None:
        folder = os.path.isdir(f"/proc/self/fd/{handle}")
        if saving and folder == (moment == "fsync-folder"):  # the logs' too come through here
            death.here("before fsync of the folder" if folder else "before fsync of the file")
        fsync(handle)

    def replace_or_die(*names: Any) -> None:
        if moment == "before-rename":
            death.here("before the rename")
        replace(*names)
        if moment == "after-rename":
            death.here("after the rename")

    def open_or_die(path: Any, mode: str) -> Any:
        return _HalfWritten(death, path, mode) if "w" in mode else open(path, mode)

    def run_profiled(self: engine.Trainer) -> engine.Result:
        sys.setprofile(death.profile)
        try:
            return run(self)
        finally:
            sys.setprofile(None)

    if moment == "call":
        engine.Trainer.run = run_profiled
    elif moment == "write":
        checkpoint.open = open_or_die
    elif "fsync" in moment:
        checkpoint.save, checkpoint.os.fsync = save_noted, fsync_or_die
    else:
        checkpoint.os.replace = replace_or_die


def _forked(work: Callable[[int], int], seconds: float | None = None) -> tuple[int, str]:
    """Exit code of `work` in a forked process, and what it wrote to the pipe that it was given.

    Killed after `seconds`, if given.
    """
    sys.stdout.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = work(write)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # still to be waited for, so the id is its own
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()


def _live(moment: str, count: float, arguments: list[str]) -> tuple[int, str]:
    """One life of a run; its exit code and where it died."""
    if moment == "timer":
        code, _ = _forked(lambda pipe: cli.main(arguments), count)
        return code, f"after {count} s"

    def work(pipe: int) -> int:
        _arm(moment, _Death(pipe, count))
        return cli.main(arguments)

    return _forked(work)


def _state(out: Path) -> str:
    """What a dead run has left."""
    last = out / "last.pt"
    if not last.exists():
        return "no checkpoint yet"
    iteration = checkpoint.load(last)["progress"]["iteration"]
    logged = len(rows(out / "steps.csv")) - iteration
    words = f"last.pt at iteration {iteration}"
    words += f", {logged} rows after it" if logged > 0 else ""
    for path in out.glob(".*.tmp"):
        words += f", {path.name} of {path.stat().st_size} bytes"
    return words


def _same(one: Path, other: Path) -> bool:
    try:
        assert_same_run(one, other)
    except AssertionError as error:
        print(f"  DIFFERS: {error}")
        return False
    return True


def kill_and_compare(kills: int, seed: int, folder: Path, options: list[str]) -> bool:
    """Whether every run that was killed ends as the uninterrupted one."""
    arguments = [*OPTIONS, *options]
    whole = folder / "whole"
    code, _ = _forked(lambda pipe: cli.main([*arguments, "--out", str(whole)]))
    if code != 0:
        print(f"the uninterrupted run ended with {code}")
        return False
    steps = len(rows(whole / "steps.csv"))
    print(f"uninterrupted: {steps} iterations, loss {rows(whole / 'steps.csv')[-1]['loss']}")
    runs, killed, same = 1, 0, True
    moments = plan(kills, seed)
    while True:
        out = folder / f"killed{runs}"
        lived = [*arguments, "--resume", "auto", "--out", str(out)]
        moment, count = moments[killed] if killed < kills else ("none", 0)
        code, where = _live(moment, count, lived)
        if code == -signal.SIGKILL:
            killed += 1
            print(f"kill {killed:2d}  run {runs}  {moment:13s} {where:45.45s} {_state(out)}")
            continue
        if code != 0:
            print(f"a life ended with {code}")
            return False
        same = _same(out, whole) and same
        print(f"run {runs} came to its end: {'bitwise equal' if same else 'DIFFERENT'}")
        if killed == kills:
            break
        runs += 1
    print(
        f"{killed} kills in {runs} run{'s' * (runs > 1)}: weights, momenta, generators and logs "
        f"{'bitwise equal' if same else 'DIFFERENT'}"
    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--out", help="a new folder for the runs (default: one that is removed)")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of fastres train, after --")
    args = parser.parse_args()
    folder = Path(args.out or tempfile.mkdtemp())
    try:
        return 0 if kill_and_compare(args.kills, args.seed, folder, args.options) else 1
    finally:
        if args.out is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
