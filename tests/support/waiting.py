"""Waits for something to come true, with a deadline; the only sleep of the tests is here."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.02

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], deadline_seconds: float, what: str) -> T:
    """The predicate's first true value; an AssertionError that says what was awaited, if none."""
    started = time.monotonic()
    while not (value := predicate()):
        waited = time.monotonic() - started
        if waited > deadline_seconds:
            raise AssertionError(f"waited {waited:.1f} s for {what}; last seen: {value!r}")
        time.sleep(POLL_SECONDS)
    return value
