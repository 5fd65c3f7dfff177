"""Waits for a condition, with a deadline; shared by the tests and the fault suite."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.02

T = TypeVar("T")


class Overdue(AssertionError):
    """A condition did not become true before its deadline."""


def wait_until(
    predicate: Callable[[], T], deadline_seconds: float, what: str, poll_seconds: float = POLL_SECONDS
) -> T:
    """Returns the predicate's first true value; raises Overdue, with `what`, after the deadline."""
    started = time.monotonic()
    while not (value := predicate()):
        waited = time.monotonic() - started
        if waited > deadline_seconds:
            raise Overdue(f"waited {waited:.1f} s for {what}; last seen: {value!r}")
        time.sleep(poll_seconds)
    return value
