"""SQL of a job in any state, for log lines about it."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.formats import raw, text_of

_GET = text(
    f"""
    SELECT user_id, {raw("github_login")}, {raw("partition_key")}, {raw("status")} FROM sync_jobs
    WHERE job_id = :job_id
    """
)


class AnyJob(NamedTuple):
    """A job as its row was at one moment. status: a state of JobStatus, or one of an older scheduler."""

    job_id: UUID
    user_id: UUID
    github_login: str | None
    partition_key: str
    status: str


def get(connection: Connection, job_id: UUID) -> AnyJob | None:
    """The job; None if it does not exist."""
    row = connection.execute(_GET, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    user_id, login, partition_key, status = tuple(row)
    return AnyJob(
        job_id=job_id,
        user_id=user_id,
        github_login=text_of(connection, login),
        partition_key=text_of(connection, partition_key) or "",
        status=text_of(connection, status) or "",
    )
