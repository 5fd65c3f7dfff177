"""Ctrl-C at a safe point: a tick ends between two batches, not inside a driver's call.

An interrupt that is raised just anywhere may leave a batch published but not marked, and psycopg or
SQLAlchemy in a state of which they complain with a traceback.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SLICE_SECONDS = 0.1


class Interruption:
    """Whether Ctrl-C was pressed; the second time, it interrupts at once."""

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """A safe point. Raises KeyboardInterrupt where Ctrl-C was pressed since."""
        if self._asked:
            raise KeyboardInterrupt

    def pause(self, seconds: float) -> None:
        """Sleeps, safe to be interrupted."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _SLICE_SECONDS))
        self.check()

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        self.check()
        self._asked = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Meanwhile, Ctrl-C waits for a safe point. Elsewhere than in the main thread it cannot."""
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, noted.note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
