"""A time limit on Python code that cannot be asked to stop, such as a compiler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Expired(BaseException):
    """Not an Exception: code that survives any error must not survive this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds.

    Only on the main thread of a Unix process; elsewhere there is no limit. A single call into
    C++ is not interrupted, the error comes after it.

    Raises:
        ValueError: seconds is not above 0.
    """
    if seconds <= 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def expire(signum, frame):
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    # again every second, should something catch it
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    except _Expired:
        raise TimeoutError(f"stopped after {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
