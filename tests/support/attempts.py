"""Moves jobs as a worker does, without a handler."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler import reasons
from worker_scheduler.ledger import claiming, jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.tables import JobStatus

REASON = reasons.ours(reasons.SKIPPED, "as a test wants it")


def claim(connection: Connection, job_id: UUID, now: datetime, leased_until: datetime) -> ClaimedJob | None:
    return claiming.claim(connection, job_id, now, leased_until).job


def finish(
    connection: Connection, job: ClaimedJob, status: JobStatus, message: str | None, now: datetime
) -> bool:
    if status is JobStatus.COMPLETED:
        return jobs.complete(connection, job, now)
    assert status in (JobStatus.FAILED, JobStatus.SKIPPED)
    return jobs.end(connection, job, status, message, REASON, now)


def put_off(
    connection: Connection, job: ClaimedJob, *, error_message: str | None, not_before: datetime
) -> bool:
    return jobs.put_off(
        connection, job, error_message=error_message, reason=None, not_before=not_before, now=not_before
    )
