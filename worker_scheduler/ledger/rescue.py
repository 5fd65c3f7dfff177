"""SQL of reconcile over sync_jobs: dead workers, jobs whose time has come, jobs whose message is gone.

Each statement takes at most `limit` jobs, skips rows that another reconciler holds, and names the
state it starts from in the UPDATE itself, so that a job which moved meanwhile is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.tables import Kind


@dataclass(frozen=True)
class DueJob:
    """A PENDING job that must be published anew, as its message needs it: ids as text."""

    job_id: str
    run_id: UUID
    user_id: str
    partition_key: str
    triggered_by: str
    backfill_days: int | None


# A state that is an expression to the planner: as long as its statistics are of before a run, it takes the
# open jobs for none, and their index for the shortest, instead of the one over leases or times.
_DEAD = """
    status || '' = 'RUNNING' AND leased_until <= :now AND attempt {comparison} :max_attempts
"""


def _of_the_dead(comparison: str, assignments: str) -> str:
    dead = _DEAD.format(comparison=comparison)
    return f"""
        UPDATE sync_jobs SET {assignments}
        WHERE job_id IN (SELECT job_id FROM sync_jobs WHERE {dead}
                         ORDER BY leased_until LIMIT :limit FOR UPDATE SKIP LOCKED)
            AND {dead}
    """


_RESCUE = text(_of_the_dead("<", "status = 'PENDING', leased_until = NULL, not_before = :now"))

_GIVE_UP = text(
    _of_the_dead(
        ">=",
        "status = 'FAILED', leased_until = NULL, completed_at = :now,"
        " error_message = 'gave up after ' || attempt || ' attempts: worker lost'",
    )
)

_DUE = "status || '' = 'PENDING' AND not_before <= :now AND (leased_until IS NULL OR leased_until <= :now)"

_TAKE_DUE = text(
    f"""
    UPDATE sync_jobs SET leased_until = :leased_until
    WHERE job_id IN (SELECT j.job_id FROM sync_jobs j
                     WHERE {_DUE} AND EXISTS (SELECT FROM sync_runs r
                                              WHERE r.run_id = j.run_id AND r.kind = :kind)
                     ORDER BY not_before LIMIT :limit FOR UPDATE SKIP LOCKED)
        AND {_DUE}
    RETURNING CAST(job_id AS text) AS job_id, run_id, CAST(user_id AS text) AS user_id, partition_key,
        triggered_by, backfill_days
    """
)

_PUBLISHED = text(
    """
    UPDATE sync_jobs j SET not_before = NULL, leased_until = NULL, republished_in = sent.broker_epoch
    FROM unnest(CAST(:job_ids AS uuid[]), CAST(:epochs AS uuid[])) AS sent(job_id, broker_epoch)
    WHERE j.job_id = sent.job_id AND j.status = 'PENDING' AND j.leased_until = :leased_until
    """
)

_WAITING = "run_id = :run_id AND status = 'PENDING' AND not_before IS NULL"

_HAS_WAITING = text(f"SELECT EXISTS (SELECT FROM sync_jobs WHERE {_WAITING})")

_REPUBLISHED_IN_LOST = f"{_WAITING} AND republished_in = ANY(CAST(:lost AS uuid[]))"

_LOST_WITH_DATA = text(
    f"""
    UPDATE sync_jobs SET not_before = :now
    WHERE job_id IN (SELECT job_id FROM sync_jobs WHERE {_REPUBLISHED_IN_LOST}
                     LIMIT :limit FOR UPDATE SKIP LOCKED)
        AND {_REPUBLISHED_IN_LOST}
    """
)

# The run: only while nobody has opened it again, or has seen the loss after us.
_MESSAGE_GONE = text(
    f"""
    UPDATE sync_jobs SET not_before = :now
    WHERE job_id IN (SELECT job_id FROM sync_jobs WHERE {_WAITING} AND job_id > :after
                     ORDER BY job_id LIMIT :limit FOR UPDATE SKIP LOCKED)
        AND {_WAITING}
        AND EXISTS (SELECT FROM sync_runs r
                    WHERE r.run_id = :run_id AND r.state = 'ENQUEUED' AND r.enqueued_at = :now)
    RETURNING job_id
    """
)


def rescue(connection: Connection, *, now: datetime, max_attempts: int, limit: int) -> int:
    """RUNNING with a lease that ran out → PENDING and due, while attempts are left; how many."""
    parameters = {"now": now, "max_attempts": max_attempts, "limit": limit}
    return connection.execute(_RESCUE, parameters).rowcount


def give_up(connection: Connection, *, now: datetime, max_attempts: int, limit: int) -> int:
    """RUNNING with a lease that ran out → FAILED, where no attempt is left; how many."""
    parameters = {"now": now, "max_attempts": max_attempts, "limit": limit}
    return connection.execute(_GIVE_UP, parameters).rowcount


def take_due(
    connection: Connection, kind: Kind, *, now: datetime, leased_until: datetime, limit: int
) -> list[DueJob]:
    """PENDING jobs of runs of a kind whose time has come, ours to publish until the lease runs out."""
    parameters = {"kind": kind.value, "now": now, "leased_until": leased_until, "limit": limit}
    rows = connection.execute(_TAKE_DUE, parameters)
    return [DueJob(**row._mapping) for row in rows]


def mark_published(
    connection: Connection, published: list[tuple[DueJob, UUID | None]], leased_until: datetime
) -> None:
    """Taken by us → their messages are out, each in its life of the broker's data.

    Those that a worker has claimed already stay as they are.
    """
    parameters = {
        "job_ids": [job.job_id for job, _ in published],
        "epochs": [None if epoch is None else str(epoch) for _, epoch in published],
        "leased_until": leased_until,
    }
    connection.execute(_PUBLISHED, parameters)


def has_waiting(connection: Connection, run_id: UUID) -> bool:
    """Whether a job of the run is PENDING and believed to have its message in the queue."""
    return bool(connection.execute(_HAS_WAITING, {"run_id": run_id}).scalar_one())


def mark_messages_gone(
    connection: Connection, run_id: UUID, *, after: UUID, now: datetime, limit: int
) -> list[UUID]:
    """PENDING and believed to wait in the queue → PENDING and due; which ones.

    after: a cursor. now: when the run's grace time was restarted.
    """
    parameters = {"run_id": run_id, "after": after, "now": now, "limit": limit}
    return list(connection.execute(_MESSAGE_GONE, parameters).scalars())


def mark_lost_with_data(
    connection: Connection, *, run_id: UUID, lost: Iterable[UUID], now: datetime, limit: int
) -> int:
    """PENDING and published alone in a life of the broker's data that is over → PENDING and due."""
    parameters = {"run_id": run_id, "lost": [str(epoch) for epoch in lost], "now": now, "limit": limit}
    return connection.execute(_LOST_WITH_DATA, parameters).rowcount
