"""SQL of jobs that somebody has revoked by a command of Celery."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.events import JobEvent, noted
from worker_scheduler.ledger.tables import JobStatus

_SKIP = noted(
    """
    UPDATE sync_jobs j SET status = 'SKIPPED', error_message = 'revoked by Celery', completed_at = :now,
        reason_class = 'revoked', leased_until = NULL, not_before = NULL
    WHERE job_id = :job_id AND status || '' IN ({states})
    """,
    JobEvent.REVOKED,
)
_SKIP_WAITING = text(_SKIP.format(states=f"'{JobStatus.PENDING}'"))
# The process that runs the job is being killed, and hands it back if it can: both states mean the same.
_SKIP_UNFINISHED = text(_SKIP.format(states=f"'{JobStatus.PENDING}', '{JobStatus.RUNNING}'"))


def skip_waiting(connection: Connection, job_id: UUID, now: datetime) -> bool:
    """Moves a revoked job PENDING → SKIPPED; False if it is not PENDING."""
    return connection.execute(_SKIP_WAITING, {"job_id": job_id, "now": now}).rowcount == 1


def skip_unfinished(connection: Connection, job_id: UUID, now: datetime) -> bool:
    """Moves a revoked job whose process is killed PENDING or RUNNING → SKIPPED; False if it has ended.

    Whichever attempt it is: the job is revoked, not one of its attempts.
    """
    return connection.execute(_SKIP_UNFINISHED, {"job_id": job_id, "now": now}).rowcount == 1
