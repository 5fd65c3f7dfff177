"""SQL of parked jobs: PENDING jobs of a paused run, which nothing but the end of the pause makes due.

A parked job has the last possible `not_before`, so that the rule for due jobs, which goes by that time,
never walks over it. Each statement takes at most `limit` jobs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.by_id import by_id, in_index_order, runs
from worker_scheduler.ledger.stopped_runs import IS_STOPPED

PARKED = datetime(9999, 1, 1, tzinfo=UTC)
"""`not_before` of a parked job. Postgres' `infinity` is no time for Python's driver."""

PARKED_SQL = "TIMESTAMPTZ '9999-01-01 00:00:00+00'"

_PENDING = "status || '' = 'PENDING'"

# In the order of the index over open jobs, after a cursor: jobs that stay open are read once.
_FIND = text(
    f"""
    SELECT job_id FROM sync_jobs
    WHERE run_id = :run_id AND status = 'PENDING' AND not_before = {PARKED_SQL}
    ORDER BY job_id LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)

_RELEASE = by_id(
    f"""
    UPDATE sync_jobs SET not_before = :now
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {{within_runs}} AND {_PENDING}
        AND coalesce(not_before = {PARKED_SQL}, false)
        AND NOT {IS_STOPPED.format(run_id="CAST(:run_id AS uuid)")}
    """
)

_FIND_DUE = text(
    f"""
    SELECT job_id, run_id FROM sync_jobs
    WHERE {_PENDING} AND not_before <= :now
        AND (run_id IN (SELECT s.run_id FROM sync_stopped_runs s WHERE NOT s.cancelled)) IS TRUE
    ORDER BY not_before LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)

_PARK = by_id(
    f"""
    UPDATE sync_jobs SET not_before = {PARKED_SQL}, leased_until = NULL
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {{within_runs}} AND {_PENDING}
        AND coalesce(not_before <= :now, false)
    """
)


def release(connection: Connection, run_id: UUID, *, now: datetime, limit: int) -> int:
    """Makes parked jobs of a run due, within a transaction, unless it is stopped; returns how many."""
    in_index_order(connection)
    found = connection.execute(_FIND, {"run_id": run_id, "limit": limit}).scalars().all()
    if not found:
        return 0
    parameters = {"job_ids": [str(job_id) for job_id in found], **runs([run_id]), "run_id": run_id}
    return connection.execute(_RELEASE.for_table(connection), {**parameters, "now": now}).rowcount


def park_due(connection: Connection, *, now: datetime, limit: int) -> int:
    """Parks jobs of paused runs that have become due, within a transaction; returns how many."""
    in_index_order(connection)
    found = connection.execute(_FIND_DUE, {"now": now, "limit": limit}).all()
    if not found:
        return 0
    parameters = {"job_ids": [str(row.job_id) for row in found], **runs(row.run_id for row in found)}
    return connection.execute(_PARK.for_table(connection), {**parameters, "now": now}).rowcount
