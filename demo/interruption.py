"""Turns Ctrl-C and SIGTERM into an exception at a moment that the demo chooses.

A signal handler that raised the exception itself could do so after a process has started but before the
demo has recorded it, and nothing would stop that process.
"""

import signal
import time
from types import FrameType

POLL_SECONDS = 0.1


class Interrupted(Exception):
    """A signal asked the demo to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class Interruption:
    """Remembers the first signal and ignores later ones, so that the demo stops in order."""

    def __init__(self) -> None:
        self._number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self._number is not None:
            raise Interrupted(self._number)

    def pause(self) -> None:
        """Sleeps for the time between two polls. Raises Interrupted if a signal has arrived."""
        self.check()
        time.sleep(POLL_SECONDS)
        self.check()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number is None:
            self._number = number
