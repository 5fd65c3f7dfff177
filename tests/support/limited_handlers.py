"""Handlers that take longer than they may, each in a different way; for tests of time limits."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from worker_scheduler.worker import JobTimeout, SyncJob

FIRST_USER = "user-1"
"""Of several users, only this one's handler takes too long."""
HANGING = {f"user-{number}" for number in range(1, 5)}
"""As many as the pool of a test has processes."""


def _touch(name: str) -> None:
    (Path(os.environ["HANDLER_FOLDER"]) / name).touch()


def _note(job: SyncJob) -> None:
    _touch(f"began-{job.attempt}-{os.getpid()}")


def _go() -> bool:
    return (Path(os.environ["HANDLER_FOLDER"]) / "go").exists()


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not _go() and time.monotonic() < deadline:
        time.sleep(0.05)


def wait(job: SyncJob) -> None:
    """The first user's handler waits for the file `go`; the others end at once."""
    if job.github_login == FIRST_USER:
        _note(job)
        _wait(90)


def clean_up(job: SyncJob) -> None:
    """Notes that it cleaned up when its time was over."""
    _note(job)
    try:
        _wait(90)
    except JobTimeout:
        _touch("cleaned")
        raise


def swallow(job: SyncJob) -> None:
    """Notes that its time was over, and goes on; the second attempt ends at once."""
    if job.github_login != FIRST_USER:
        return
    _note(job)
    while not _go():
        try:
            _wait(90)
        except JobTimeout:
            _touch("swallowed")


def hold_the_gil(job: SyncJob) -> None:
    """Stays in C code that holds the GIL, and that no signal interrupts."""
    if job.github_login != FIRST_USER:
        return
    _note(job)
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):  # a mutex that is locked twice is waited for, for ever
        libc.pthread_mutex_lock(mutex)


def swallow_everything(job: SyncJob) -> None:
    """Goes on whatever it is told, as a loop over accounts with a bare `except` does."""
    _note(job)
    while not _go():
        with suppress(BaseException):
            _wait(90)


def die_of_sigterm(job: SyncJob) -> None:
    """Leaves SIGTERM to the system, as asyncio does with a handler of its own that it removes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _note(job)
    _wait(90)


def sleep_for_ever(job: SyncJob) -> None:
    """Every attempt sleeps."""
    _note(job)
    time.sleep(90)


def complete_quickly(job: SyncJob) -> None:
    """Notes each time that it is called."""
    _touch(f"quick-{job.github_login}-{job.attempt}-{os.getpid()}-{time.monotonic_ns()}")


def hang_for_four(job: SyncJob) -> None:
    """The first four users' handlers do not return; the others end at once."""
    if job.github_login in HANGING:
        time.sleep(10**6)
