"""SIGTERM and Ctrl-C as a wish the training loop looks at between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignals:
    """A context in which SIGTERM and SIGINT are noted; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # only the main thread may set handlers; a run inside another has no signals to catch
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
