"""One handler per row of the table. It does this for the first user only; the others' jobs are done."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from worker_scheduler.worker import JobTimeout, RetryLater, SkipJob, SyncJob

FIRST_USER = "user-1"
_LONGEST_SECONDS = 90.0
"""How long a handler waits for the file `go`: longer than a test waits for anything."""


def _touch(name: str) -> None:
    (Path(os.environ["HANDLER_FOLDER"]) / name).touch()


def _of_first_user(function: Callable[[SyncJob], object]) -> Callable[[SyncJob], object]:
    @wraps(function)
    def handle(job: SyncJob) -> object:
        if job.github_login != FIRST_USER:
            return None
        _touch(f"began-{job.attempt}-{time.monotonic_ns()}")
        return function(job)

    return handle


def _wait_for_go() -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        if (Path(os.environ["HANDLER_FOLDER"]) / "go").exists():
            return
        time.sleep(0.05)


@_of_first_user
def returns(job: SyncJob) -> None:
    """Returns at once."""


@_of_first_user
def raises(job: SyncJob) -> None:
    """Fails."""
    raise RuntimeError("no such account")


@_of_first_user
def skips(job: SyncJob) -> None:
    """Has nothing to do."""
    raise SkipJob("has no repositories")


@_of_first_user
def puts_off(job: SyncJob) -> None:
    """Asks for a second attempt."""
    if job.attempt == 1:
        raise RetryLater("rate limited", delay=0)


@_of_first_user
def fails_once(job: SyncJob) -> None:
    """Fails at the first attempt."""
    if job.attempt == 1:
        raise ConnectionResetError("by peer")


@_of_first_user
def returns_a_coroutine(job: SyncJob) -> object:
    """Returns work that nobody has done."""
    return asyncio.sleep(0)


@_of_first_user
def exits(job: SyncJob) -> None:
    """Calls sys.exit, as a script does."""
    sys.exit("that was it")


@_of_first_user
def waits(job: SyncJob) -> None:
    """Waits for the file `go`, and notes how that ended."""
    try:
        _wait_for_go()
    except JobTimeout:
        _touch("interrupted")
        raise
    _touch("ended")


def runs_async_code(job: SyncJob) -> None:
    """Runs an event loop of its own for a second."""
    asyncio.run(asyncio.sleep(1))
