"""Runs a `fastres` command again and again, killing it (SIGKILL) at a chosen moment each time.

    killed_run.py PLAN ARGUMENT...

PLAN is JSON: a list of [moment, count]; the process of each life kills itself at the count-th
time it reaches that moment, or is killed by its parent after `count` seconds ("timer"). A last
life without a kill follows. Prints the lives' exit codes as JSON. The lives are forked, so that
torch is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from fastres import cli
from fastres.training import checkpoint, engine, train  # noqa: F401 (imported before the forks)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killing(function: Callable, count: int, after: bool) -> Callable:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            _die()
        result = function(*args, **kwargs)
        if calls == count:
            _die()
        return result

    return wrapped


class _HalfWritten:
    """Stands in for the temporary file: dies with half of its bytes on the disk."""

    opened = 0
    count = 0

    def __init__(self, path: Any, mode: str) -> None:
        self._file = open(path, mode)  # noqa: SIM115
        if "w" in mode:
            _HalfWritten.opened += 1

    def __enter__(self) -> _HalfWritten:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> None:
        if _HalfWritten.opened == _HalfWritten.count:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            _die()
        self._file.write(data)


def _arm(moment: str, count: int) -> None:
    if moment == "step":
        engine.Trainer._step = _killing(engine.Trainer._step, count, after=True)
    elif moment == "write":
        _HalfWritten.count = count
        checkpoint.open = _HalfWritten
    elif moment == "fsync":
        checkpoint.os.fsync = _killing(os.fsync, count, after=False)
    elif moment in ("before-rename", "after-rename"):
        after = moment == "after-rename"
        checkpoint.os.replace = _killing(os.replace, count, after)
    else:
        raise ValueError(f"moment must be step, write, fsync, before-rename, got {moment!r}")


def _live(moment: str | None, count: float, arguments: list[str]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            if moment not in (None, "timer"):
                _arm(moment, int(count))
            code = cli.main(arguments)
        finally:
            sys.stdout.flush()
            os._exit(code)
    if moment == "timer":
        time.sleep(count)
        os.kill(child, signal.SIGKILL)  # still to be waited for, so the id is its own
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    plan, arguments = json.loads(sys.argv[1]), sys.argv[2:]
    codes = [_live(moment, count, arguments) for moment, count in [*plan, (None, 0)]]
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
