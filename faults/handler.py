"""The suite's handler. It records what it does in a file that no fault touches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from faults import bad_handlers
from worker_scheduler.worker import RetryLater, SyncJob

RECORD = "FAULTS_RECORD"
PROCESS = "FAULTS_PROCESS"
SECONDS = "FAULTS_HANDLER_SECONDS"
LATE = "late-"
"""Jobs of logins with this prefix are retried once, so that reconcile has something to publish."""


@dataclass(frozen=True)
class Entry:
    """One line of the record: what happened to an attempt at a job, and in which worker process."""

    what: str
    job_id: UUID
    attempt: int
    process: str


def handle(job: SyncJob) -> object:
    """Records the beginning, works for a while, records the end; or does what the user's login names."""
    _note("began", job)
    bad = bad_handlers.of_login(job.github_login)
    if bad is not None:
        return bad.handle(job)
    time.sleep(float(os.environ.get(SECONDS, "0")))
    if job.attempt == 1 and (job.github_login or "").startswith(LATE):
        _note("put-off", job)
        raise RetryLater("once", delay=0)
    _note("ended", job)
    return None


def read(record: Path) -> list[Entry]:
    """Returns the record so far, in the order in which it was written."""
    if not record.exists():
        return []
    lines = [line.split() for line in record.read_text().splitlines()]
    return [Entry(what, UUID(job_id), int(attempt), process) for what, job_id, attempt, process in lines]


def _note(what: str, job: SyncJob) -> None:
    line = f"{what} {job.job_id} {job.attempt} {os.environ[PROCESS]}\n"
    # One write in append mode, so that lines of several processes never mix and SIGKILL truncates none.
    descriptor = os.open(os.environ[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
