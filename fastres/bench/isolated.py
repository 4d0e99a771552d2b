"""A function called in a fresh process that cannot take the caller along, whatever it does."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Report = Callable[[Any], object]  # sends a picklable message to the caller

_EVENT, _RESULT, _ERROR = "event", "result", "error"
_LOOK = 1.0  # seconds between two looks at whether the process is alive
_FAREWELL = 10.0  # seconds that a process has to end once it has returned
_TAIL = 1500  # characters of what a process said that an error repeats


class IsolatedError(Exception):
    """The function did not return; its text says why.

    Attributes:
        crashed: the process ended, or was stopped, instead of raising an exception.
        output: the end of what the process wrote.
    """

    def __init__(self, reason: str, *, crashed: bool, output: str = "") -> None:
        super().__init__(reason)
        self.crashed = crashed
        self.output = output


def call(
    function: Callable[..., Any],
    *arguments: Any,
    on_event: Report = lambda _: None,
    seconds: float | None = None,
) -> Any:
    """The result of `function(report, *arguments)` in a process of its own.

    Everything passed is pickled. What the function reports comes to `on_event` in order. The
    process and its children end with this call, and with the caller's process however that ends.

    Args:
        function: of a module, so that the process finds it.
        seconds: the process is stopped after so many.

    Raises:
        IsolatedError: the function raised, or the process crashed or took too long.
    """
    context = multiprocessing.get_context("spawn")
    events, theirs = context.Pipe(duplex=False)
    life, ours = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="fastres-") as folder:
        log = Path(folder) / "log"
        process = context.Process(target=_serve, args=(theirs, life, str(log), function, arguments))
        process.start()
        # without these copies the ends close with the process
        theirs.close()
        life.close()
        try:
            found = _listen(process, events, on_event, seconds, log)
            # to put away what it shares with this process; not for ever
            process.join(_FAREWELL)
            return found
        finally:
            _stop(process)
            events.close()
            ours.close()


def _listen(process, events: Connection, on_event: Report, seconds: float | None, log: Path) -> Any:
    end = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise IsolatedError(f"stopped after {seconds:.0f} s", crashed=True, output=_tail(log))
        # a child of the process may hold its end open: it is looked at as well
        if process.is_alive() and not events.poll(min(left, _LOOK)):
            continue
        try:
            if not events.poll():
                raise EOFError
            kind, content = events.recv()
        except (EOFError, OSError):
            process.join()
            reason = f"the process {_ending(process.exitcode)}"
            raise IsolatedError(reason, crashed=True, output=_tail(log)) from None
        if kind == _RESULT:
            return content
        if kind == _ERROR:
            raise IsolatedError(content, crashed=False, output=_tail(log))
        on_event(content)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _tail(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]
    return ""


def _stop(process) -> None:
    # the whole session, since compilers start processes of their own
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    process.close()


def _serve(
    events: Connection, life: Connection, log: str, function: Callable[..., Any], arguments: tuple
) -> None:
    """The process: a session of its own, whose output goes to `log`."""
    if hasattr(os, "setsid"):
        os.setsid()
    # an interrupt is the caller's to deal with
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # where memory runs out, this process goes and not its caller
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    threading.Thread(target=_end_with_caller, args=(life,), daemon=True).start()
    try:
        result = function(lambda content: events.send((_EVENT, content)), *arguments)
        events.send((_RESULT, result))
    except Exception as error:
        traceback.print_exc()
        events.send((_ERROR, _describe(error)))


def _describe(error: Exception) -> str:
    from .compare import describe

    return describe(error)


def _end_with_caller(life: Connection) -> None:
    try:
        life.recv()
    except (EOFError, OSError):
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(0, signal.SIGKILL)
        os._exit(1)
