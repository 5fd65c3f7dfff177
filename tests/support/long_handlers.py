"""Handlers that take long, each in a different way; for tests of heartbeats, signals and retries."""

import ctypes
import os
import time
from pathlib import Path

from worker_scheduler.worker import RetryLater, SyncJob

LEASES = 1.75
"""How many leases long a handler here takes."""


def _note(job: SyncJob) -> None:
    """Notes that this attempt has begun, and in which process."""
    (Path(os.environ["HANDLER_FOLDER"]) / f"began-{job.attempt}-{os.getpid()}").touch()


def _long_seconds() -> float:
    return LEASES * float(os.environ["LEASE_SECONDS"])


def sleep(job: SyncJob) -> None:
    """Sleeps without the GIL, as I/O does."""
    _note(job)
    time.sleep(_long_seconds())


def hold_the_gil(job: SyncJob) -> None:
    """Stays in C code that holds the GIL, as a long match of `re` does."""
    _note(job)
    ctypes.PyDLL(None).usleep(int(_long_seconds() * 1_000_000))


def hold_the_gil_then_fail(job: SyncJob) -> None:
    """The first attempt takes longer than its lease and fails; later ones end at once."""
    if job.attempt == 1:
        hold_the_gil(job)
        raise RuntimeError("too late to matter")
    _note(job)


def until_told(job: SyncJob) -> None:
    """The first attempt ends when it finds the file `go`; later ones end at once."""
    _note(job)
    deadline = time.monotonic() + 60
    while job.attempt == 1 and not (Path(os.environ["HANDLER_FOLDER"]) / "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("no file `go` after 60 s")
        time.sleep(0.02)


def once_more(job: SyncJob) -> None:
    """Asks for a second attempt, at once."""
    _note(job)
    if job.attempt == 1:
        raise RetryLater("not yet", delay=0)


def fail(job: SyncJob) -> None:
    """Fails, with no chance to do better."""
    _note(job)
    raise RuntimeError("no such account")
