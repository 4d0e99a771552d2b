"""The ranks of a distributed run as forked processes: torch is imported once for all of them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """Exit code (negative: the signal) and what the process wrote."""

    code: int
    out: str
    error: str


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    size: int,
    work: Callable[[int], int],
    folder: Path,
    absent: tuple[int, ...] = (),
    timeout: float = 120,
) -> list[Ended]:
    """Forks the ranks but those `absent`, each in a folder of its own under `folder`.

    A rank that stops itself (SIGSTOP) is killed once the others have ended. Must be called from a
    process without other threads. Raises TimeoutError, with all ranks killed, after `timeout`
    seconds.
    """
    port = free_port()
    children: dict[int, int] = {}
    ranks = [rank for rank in range(size) if rank not in absent]
    for rank in ranks:
        here = folder / f"rank{rank}"
        here.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 70
            try:
                _settle(here, rank, size, port)
                code = work(rank)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children[child] = rank
    codes = _wait(children, time.monotonic() + timeout)
    return [
        Ended(
            codes[rank], *((folder / f"rank{rank}" / name).read_text() for name in ("out", "err"))
        )
        for rank in ranks
    ]


def _settle(folder: Path, rank: int, size: int, port: int) -> None:
    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip


def _wait(children: dict[int, int], limit: float) -> dict[int, int]:
    """Exit codes by rank."""
    codes: dict[int, int] = {}
    stopped: set[int] = set()
    left = set(children)
    while left:
        for child in sorted(left):
            found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                stopped.add(child)
            elif found:
                codes[children[child]] = os.waitstatus_to_exitcode(status)
                left.discard(child)
        late = time.monotonic() > limit
        if left and (late or left <= stopped):
            for child in left:  # not waited for yet, so the ids are theirs
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[children[child]] = -signal.SIGKILL
            if late:
                raise TimeoutError(f"ranks {sorted(children[child] for child in left)} hung")
            left.clear()
        time.sleep(0.02)
    return codes
