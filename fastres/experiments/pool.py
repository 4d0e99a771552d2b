"""An experiment's runs, several at a time in processes of their own, or one by one in this one."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastres.experiments import one_run
from fastres.experiments.plan import Run
from fastres.experiments.progress import Progress
from fastres.training.errors import Stopped, TrainingError
from fastres.training.signals import StopSignals

LOG_FILE = "log.txt"
PROGRAM = ["-m", one_run.__name__]
_PERIOD = 0.5  # seconds between two looks at the signals
_PATIENCE = 60.0  # seconds that a run has to save its state before it is killed


def run_all(runs: Sequence[Run], jobs: int, threads: int, progress: Progress, lock: int) -> None:
    """Brings every run to its end; those that are finished already are left alone.

    `lock` is a file descriptor that every process keeps open as long as it lives. Raises Stopped
    after a signal, when all runs have saved their state, and TrainingError naming the run that
    failed.
    """
    waiting = [run for run in runs if not one_run.finished(run.config)]
    progress.begin(len(runs), len(runs) - len(waiting))
    try:
        if jobs == 1:
            _one_by_one(waiting, threads, progress)
        else:
            _Pool(waiting, jobs, threads, progress, lock).run()
    finally:
        progress.close()


def _one_by_one(runs: Sequence[Run], threads: int, progress: Progress) -> None:
    for run in runs:
        progress.start(run.name)
        with _Log(run) as log:

            def tell(message: dict[str, Any], run: Run = run, log: _Log = log) -> None:
                log.take(message)
                progress.take(run.name, message)

            try:
                one_run.run_to_end(run.config, threads, tell)
            except Stopped as stopped:
                raise _stopped(stopped.signum) from None
            except TrainingError as error:
                error.args = (f"{run.name}: {error}",)
                raise
        progress.finish(run.name)


def _stopped(signum: int) -> Stopped:
    return Stopped(
        f"stopped by {signal.Signals(signum).name}; the runs' states are saved, "
        "give the same command to go on",
        signum,
    )


class _Log:
    """A run's notes in its folder, as a person would have seen them."""

    def __init__(self, run: Run) -> None:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(run.folder / LOG_FILE, "a")  # noqa: SIM115
        except OSError as error:
            raise TrainingError(f"cannot write {run.folder}: {error.strerror}") from None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def take(self, message: dict[str, Any]) -> None:
        for name in ("note", "error"):
            if name in message:
                self._file.write(f"{message[name]}\n")
                self._file.flush()

    def fileno(self) -> int:
        """Where a process writes what it has to say of an unforeseen end."""
        return self._file.fileno()


@dataclass
class _Active:
    run: Run
    process: subprocess.Popen
    log: _Log
    error: str | None = None
    rest: bytes = field(default=b"")


class _Pool:
    def __init__(
        self, runs: Sequence[Run], jobs: int, threads: int, progress: Progress, lock: int
    ) -> None:
        self._lock = lock
        self._waiting = deque(runs)
        self._jobs, self._threads, self._progress = jobs, threads, progress
        self._active: list[_Active] = []
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        with StopSignals() as stop:
            try:
                while self._waiting or self._active:
                    while self._waiting and len(self._active) < self._jobs:
                        self._start(self._waiting.popleft())
                    self._look()
                    if stop.signum is not None:
                        self._stop_all()
                        raise _stopped(stop.signum)
            finally:
                self._stop_all()
                self._selector.close()

    def _start(self, run: Run) -> None:
        log = _Log(run)
        process = subprocess.Popen(
            [sys.executable, *PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.fileno(),
            env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            pass_fds=(self._lock,),
            start_new_session=True,  # Ctrl-C is this process's to hand on, once
        )
        active = _Active(run, process, log)
        self._active.append(active)
        self._selector.register(process.stdout, selectors.EVENT_READ, active)
        order = json.dumps({"config": run.config.as_dict(), "threads": self._threads})
        try:
            # stays open: its end tells the process that this one is gone
            process.stdin.write(order.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its exit code will say so
        self._progress.start(run.name)

    def _look(self) -> None:
        for key, _ in self._selector.select(_PERIOD):
            active = key.data
            piece = os.read(active.process.stdout.fileno(), 65536)
            *lines, active.rest = (active.rest + piece).split(b"\n")
            for line in lines:
                self._take(active, line)
            if not piece:
                self._end(active)
        self._progress.tick()

    def _take(self, active: _Active, line: bytes) -> None:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:  # a library that prints
            message = {"note": line.decode(errors="replace")}
        active.error = message.get("error", active.error)
        active.log.take(message)
        self._progress.take(active.run.name, message)

    def _end(self, active: _Active) -> None:
        code = active.process.wait()
        self._forget(active)
        if code == 0 and one_run.finished(active.run.config):
            self._progress.finish(active.run.name)
            return
        log = active.run.folder / LOG_FILE
        reason = active.error or f"ended with exit code {code}; its last words are in {log}"
        failure = TrainingError(f"{active.run.name}: {reason}")
        failure.exit_code = code if active.error is not None else 1
        raise failure

    def _forget(self, active: _Active) -> None:
        self._selector.unregister(active.process.stdout)
        self._active.remove(active)
        active.process.stdout.close()
        active.process.stdin.close()
        active.log.close()

    def _stop_all(self) -> None:
        """Asks all that run to save and stop, and waits for it."""
        for active in self._active:
            active.process.terminate()
        for active in list(self._active):
            try:
                active.process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                active.process.kill()
                active.process.wait()
            self._forget(active)
