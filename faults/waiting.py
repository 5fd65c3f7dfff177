"""Waits for something to come true, with a deadline; the only sleep of the suite's own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.05

T = TypeVar("T")


class Overdue(Exception):
    """What was awaited did not come true in time."""


def pass_by(seconds: float) -> None:
    """Lets so many seconds go by."""
    time.sleep(seconds)


def wait_until(
    predicate: Callable[[], T], deadline_seconds: float, what: str, poll_seconds: float = POLL_SECONDS
) -> T:
    """The predicate's first true value. Raises Overdue, which says what was awaited."""
    deadline = time.monotonic() + deadline_seconds
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise Overdue(f"waited {deadline_seconds:.0f} s for {what}")
        time.sleep(poll_seconds)
    return value
