"""SQL of reconcile over sync_jobs: due jobs, and jobs whose messages went with the broker's data.

Each statement takes at most `limit` jobs, skips rows that another reconcile holds, and names in the UPDATE
itself the state it starts from, so that it leaves alone a job that has moved in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.by_id import by_id, in_index_order, runs
from worker_scheduler.ledger.lease_sql import is_over
from worker_scheduler.ledger.stopped_runs import IS_STOPPED
from worker_scheduler.ledger.tables import Kind


@dataclass(frozen=True)
class DueJob:
    """A PENDING job that must be published again, with what its message needs: ids as text."""

    job_id: str
    run_id: UUID
    user_id: str
    partition_key: str
    triggered_by: str
    backfill_days: int | None


_PENDING = "status || '' = 'PENDING'"
_UNLEASED = f"(leased_until IS NULL OR {is_over('leased_until')})"

# In the order of an index. The status is hidden from the index of open jobs (see by_id.py). The runs of the
# kind are no join but a list (IS TRUE), since a join may lose the order.
_TAKE_DUE = text(
    f"""
    SELECT CAST(job_id AS text) AS job_id, run_id, CAST(user_id AS text) AS user_id, partition_key,
        triggered_by, backfill_days
    FROM sync_jobs
    WHERE {_PENDING} AND not_before <= :now AND {_UNLEASED}
        AND (run_id IN (SELECT r.run_id FROM sync_runs r
                        WHERE r.kind = :kind AND NOT {IS_STOPPED.format(run_id="r.run_id")})) IS TRUE
    ORDER BY not_before LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)

_LEASE_DUE = by_id(
    f"""
    UPDATE sync_jobs SET leased_until = :leased_until
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {{within_runs}}
        AND {_PENDING} AND coalesce(not_before <= :now, false) AND {_UNLEASED}
    RETURNING CAST(job_id AS text)
    """
)

_PUBLISHED = by_id(
    f"""
    UPDATE sync_jobs SET not_before = NULL, leased_until = NULL, republished_in = :epoch,
        republished_at = :now
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {{within_runs}}
        AND {_PENDING} AND leased_until IS NOT DISTINCT FROM :leased_until
    """
)

# In the order of the index that finds the run's open jobs.
_LOST = "not_before IS NULL AND coalesce(republished_in = ANY(CAST(:lost AS uuid[])), false)"

_LOCK_LOST = text(
    f"""
    SELECT job_id FROM sync_jobs
    WHERE run_id = :run_id AND status = 'PENDING' AND {_LOST}
    ORDER BY job_id LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)

_LOST_WITH_DATA = by_id(
    f"""
    UPDATE sync_jobs SET not_before = :now
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {{within_runs}} AND {_PENDING} AND {_LOST}
    """
)


def take_due(
    connection: Connection, kind: Kind, *, now: datetime, leased_until: datetime, limit: int
) -> list[DueJob]:
    """Takes due PENDING jobs of runs of a kind, to be published again before `leased_until`, those that are
    due for the longest time first.

    In a transaction, so that what is found stays locked until it is leased; otherwise a job that another
    process takes in between is left out.
    """
    in_index_order(connection)
    parameters = {"kind": kind.value, "now": now, "limit": limit}
    found = [DueJob(**row._mapping) for row in connection.execute(_TAKE_DUE, parameters)]
    if not found:
        return []
    leased = set(
        connection.execute(
            _LEASE_DUE.for_table(connection),
            {"now": now, "leased_until": leased_until, **given(found)},
        ).scalars()
    )
    return [job for job in found if job.job_id in leased]


def mark_published(
    connection: Connection,
    published: list[tuple[DueJob, UUID | None]],
    leased_until: datetime,
    now: datetime,
) -> None:
    """Marks jobs that `take_due` took as published by now, each in its broker epoch.

    Jobs that a worker has already claimed do not change.
    """
    for epoch in {epoch for _, epoch in published}:
        parameters = {
            **given([job for job, published_in in published if published_in == epoch]),
            "epoch": epoch,
            "leased_until": leased_until,
            "now": now,
        }
        connection.execute(_PUBLISHED.for_table(connection), parameters)


def mark_lost_with_data(
    connection: Connection, *, run_id: UUID, lost: Iterable[UUID], now: datetime, limit: int
) -> int:
    """Makes PENDING jobs due, within a transaction, whose last message went out alone in a lost broker
    epoch; returns how many.
    """
    in_index_order(connection)
    epochs = [str(epoch) for epoch in lost]
    locked = connection.execute(_LOCK_LOST, {"run_id": run_id, "lost": epochs, "limit": limit}).scalars()
    job_ids = [str(job_id) for job_id in locked]
    if not job_ids:
        return 0
    parameters = {"job_ids": job_ids, **runs([run_id]), "lost": epochs, "now": now}
    return connection.execute(_LOST_WITH_DATA.for_table(connection), parameters).rowcount


def given(jobs: Sequence[DueJob]) -> dict[str, object]:
    """The parameters by which a statement made by `by_id` gets these jobs."""
    return {"job_ids": [job.job_id for job in jobs], **runs(job.run_id for job in jobs)}
