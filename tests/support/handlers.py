"""Handlers of jobs, named by SYNC_HANDLER in the tests of workers."""

import os
import sys
import time
from pathlib import Path

from worker_scheduler.worker import SkipJob, SyncJob

not_a_function = "text"


def complete(job: SyncJob) -> None:
    """Returns at once: the job is COMPLETED."""


def by_login(job: SyncJob) -> None:
    """Skips user-1, fails for user-2, calls sys.exit for user-3; the other jobs are COMPLETED."""
    if job.github_login == "user-1":
        raise SkipJob("has no repositories")
    if job.github_login == "user-2":
        raise RuntimeError("no such account")
    if job.github_login == "user-3":
        sys.exit("that was it")


def wait_for_permission(job: SyncJob) -> None:
    """Notes in the folder HANDLER_FOLDER that the job has begun; ends when it finds the file `go` there."""
    folder = Path(os.environ["HANDLER_FOLDER"])
    (folder / f"began-{job.user_id}-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while not (folder / "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("no file `go` after 60 s")
        time.sleep(0.02)


def hang(job: SyncJob) -> None:
    """Does not return."""
    time.sleep(10**6)


async def coroutine(job: SyncJob) -> None:
    """Not a valid handler: a worker would not await it, so it would do nothing."""
