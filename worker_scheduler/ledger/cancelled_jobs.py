"""SQL of cancelled runs: their waiting jobs become SKIPPED in bounded steps, and then they end."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler import reasons
from worker_scheduler.ledger.by_id import by_id, in_index_order, runs
from worker_scheduler.ledger.events import JobEvent, noted

_FIND = text(
    """
    SELECT job_id FROM sync_jobs WHERE run_id = :run_id AND status = 'PENDING'
    ORDER BY job_id LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)

_SKIP = by_id(
    noted(
        f"""
        UPDATE sync_jobs j SET status = 'SKIPPED', cancelled_at = :now, completed_at = :now,
            error_message = 'cancelled', reason_class = '{reasons.CANCELLED}', leased_until = NULL,
            not_before = NULL
        WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {{within_runs}} AND status || '' = 'PENDING'
            AND EXISTS (SELECT FROM sync_runs r
                        WHERE r.run_id = CAST(:run_id AS uuid) AND r.cancelled_at IS NOT NULL)
        """,
        JobEvent.CANCELLED,
    )
)

# Its batches have no job to send.
_CLOSE_BATCHES = text(
    """
    UPDATE sync_batches SET enqueued_at = :now, claimed_by = NULL, claimed_until = NULL
    WHERE run_id = :run_id AND enqueued_at IS NULL
    """
)


def skip(connection: Connection, run_id: UUID, *, now: datetime, limit: int) -> int:
    """Moves jobs of a cancelled run PENDING → SKIPPED, within a transaction; returns how many."""
    in_index_order(connection)
    found = connection.execute(_FIND, {"run_id": run_id, "limit": limit}).scalars().all()
    if not found:
        return 0
    parameters = {"job_ids": [str(job_id) for job_id in found], **runs([run_id]), "run_id": run_id}
    return connection.execute(_SKIP.for_table(connection), {**parameters, "now": now}).rowcount


def close_batches(connection: Connection, run_id: UUID, now: datetime) -> None:
    """Marks the unsent batches of a cancelled run, which has ended, as sent."""
    connection.execute(_CLOSE_BATCHES, {"run_id": run_id, "now": now})
