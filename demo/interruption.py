"""Turns Ctrl-C and SIGTERM into an exception at a place that the demo chooses.

A handler that raised by itself could do so between the start of a process and the note of it, and
leave that process behind.
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
    """Notes the first signal; further ones change nothing, so that the stop is orderly."""

    def __init__(self) -> None:
        self._number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._number is not None:
            raise Interrupted(self._number)

    def pause(self) -> None:
        """Sleep for the time between two looks at something; raise Interrupted likewise."""
        self.check()
        time.sleep(POLL_SECONDS)
        self.check()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number is None:
            self._number = number
