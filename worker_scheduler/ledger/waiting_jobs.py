"""SQL over waiting jobs: PENDING, and by the ledger their message is in the queue or with a worker.

A waiting job's message was published on its own at `republished_at`, otherwise with its batch at the
batch's `enqueued_at`. Each statement looks at one run, hence into one partition, and at a page of its
jobs. The LATERAL subquery with a LIMIT fixes the order of its joins: with statistics older than the run
Postgres expects no waiting job, and joins such that it reads all of them for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.by_id import by_id, in_index_order, runs


class WaitingJob(NamedTuple):
    """A waiting job. batch: the number of the batch with which it was published; None: on its own."""

    job_id: UUID
    batch: int | None
    attempt: int


NO_BATCH = -1
"""Stands for None in an array of batches: with `array_nulls` off, Postgres reads no NULL in an array."""

_FIRST = WaitingJob(UUID(int=0), -1, 0)
_FIRST_ALONE = WaitingJob(UUID(int=0), None, 0)

_BY_BATCH = text(
    """
    SELECT j.job_id, b.number AS batch, j.attempt
    FROM (SELECT number, first_job_id, last_job_id FROM sync_batches
          WHERE run_id = :run_id AND number >= :batch AND enqueued_at <= :cutoff
          ORDER BY number OFFSET 0) b
    CROSS JOIN LATERAL (
        SELECT job_id, attempt FROM sync_jobs
        WHERE run_id = :run_id AND job_id BETWEEN b.first_job_id AND b.last_job_id
            AND status = 'PENDING' AND not_before IS NULL AND republished_in IS NULL
            AND (b.number > :batch OR job_id > :after)
        ORDER BY job_id LIMIT :limit) j
    ORDER BY b.number, j.job_id LIMIT :limit
    """
)

# The index of these jobs has no order. While there are few of them, they are all read, in each page. If
# there are many, they are found in the order of the index of open jobs, most of which they are.
_PUBLISHED_ALONE = "run_id = :run_id AND status = 'PENDING' AND republished_in IS NOT NULL"
_FEW = 2000

_NUMBER_ALONE = text(
    f"""
    SELECT count(*) FROM (SELECT FROM sync_jobs WHERE {_PUBLISHED_ALONE}
                          ORDER BY republished_in LIMIT {_FEW}) few
    """
)

# NULL: a version that did not note the time has published it.
_ALONE = """
    SELECT job_id, CAST(NULL AS integer) AS batch, attempt FROM {jobs}
    WHERE {condition} AND not_before IS NULL
        AND (republished_at IS NULL OR republished_at <= :cutoff) AND job_id > :after
    ORDER BY job_id LIMIT :limit
"""
_OF_FEW_ALONE = text(
    _ALONE.format(
        jobs=f"(SELECT * FROM sync_jobs WHERE {_PUBLISHED_ALONE} ORDER BY republished_in LIMIT {_FEW}) few",
        condition="true",
    )
)
_OF_MANY_ALONE = text(_ALONE.format(jobs="sync_jobs", condition=_PUBLISHED_ALONE))

# Those of the given jobs that still wait, and were not published since the given times.
_STILL = f"""
    FROM (SELECT job_id, nullif(batch, {NO_BATCH}) AS batch, attempt, published_until
          FROM unnest(CAST(:job_ids AS uuid[]), CAST(:batches AS integer[]), CAST(:attempts AS smallint[]),
                      CAST(:published_until AS timestamptz[]))
              AS listed(job_id, batch, attempt, published_until)) given
    LEFT JOIN sync_batches b ON b.run_id = :run_id AND b.number = given.batch
    CROSS JOIN LATERAL (
        SELECT job_id FROM sync_jobs
        WHERE job_id = given.job_id AND {{{{within_runs}}}} AND attempt = given.attempt
            AND status || '' = 'PENDING' AND not_before IS NULL
            AND (republished_at IS NULL OR republished_at <= given.published_until)
            AND (given.batch IS NULL) = (republished_in IS NOT NULL)
        LIMIT 1 {{lock}}) j
    WHERE given.batch IS NULL OR b.enqueued_at <= given.published_until
"""

_STILL_WAITING = by_id(f"SELECT j.job_id {_STILL.format(lock='')}")

_LOCK_WAITING = by_id(f"SELECT j.job_id {_STILL.format(lock='FOR UPDATE SKIP LOCKED')}")

_MAKE_DUE = by_id(
    """
    UPDATE sync_jobs SET not_before = :now
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {within_runs}
        AND status || '' = 'PENDING' AND not_before IS NULL
    """
)

_NUMBER_RUNNING = by_id(
    """
    SELECT count(*) FROM sync_jobs
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND {within_runs}
        AND coalesce(run_id = ANY(CAST(:run_ids AS uuid[])), false) AND status || '' = 'RUNNING'
    """
)


def page(
    connection: Connection, run_id: UUID, *, cutoff: datetime, after: WaitingJob | None, limit: int
) -> list[WaitingJob]:
    """The run's waiting jobs that were published until `cutoff`, within a transaction, in pages: those of
    batches, then others.

    after: the last job of the page before; None for the first page. An empty page is the end.
    """
    in_index_order(connection)
    parameters = {"run_id": run_id, "cutoff": cutoff, "limit": limit}
    if after is None or after.batch is not None:
        last = after or _FIRST
        rows = connection.execute(_BY_BATCH, {**parameters, "batch": last.batch, "after": last.job_id})
        found = [WaitingJob(*row) for row in rows]
        if found:
            return found
        after = _FIRST_ALONE
    number = connection.execute(_NUMBER_ALONE, {"run_id": run_id}).scalar_one()
    if not number:
        return []
    alone = _OF_FEW_ALONE if number < _FEW else _OF_MANY_ALONE
    rows = connection.execute(alone, {**parameters, "after": after.job_id})
    return [WaitingJob(*row) for row in rows]


def still_waiting(
    connection: Connection, run_id: UUID, jobs: Sequence[WaitingJob], published_until: Sequence[datetime]
) -> set[UUID]:
    """The ids of those of the run's jobs that wait as before: no attempt was made, and no message sent.

    published_until: for each job, when it was found to be waiting; its message was published before.
    """
    parameters = _given(run_id, jobs, published_until)
    return set(connection.execute(_STILL_WAITING.for_table(connection), parameters).scalars())


def make_due(
    connection: Connection,
    run_id: UUID,
    jobs: Sequence[WaitingJob],
    published_until: Sequence[datetime],
    now: datetime,
) -> int:
    """Makes those of the run's jobs due, within a transaction, that wait as before, see `still_waiting`.

    Returns how many. Passes over jobs that another transaction has locked: a worker may be claiming them.
    """
    parameters = _given(run_id, jobs, published_until)
    locked = connection.execute(_LOCK_WAITING.for_table(connection), parameters).scalars()
    job_ids = [str(job_id) for job_id in locked]
    if not job_ids:
        return 0
    parameters = {"job_ids": job_ids, **runs([run_id]), "now": now}
    return connection.execute(_MAKE_DUE.for_table(connection), parameters).rowcount


def number_running(connection: Connection, run_ids: Sequence[UUID], job_ids: Sequence[str]) -> int:
    """How many of these jobs are RUNNING, and of one of these runs. run_ids: at least one."""
    parameters = {"job_ids": list(job_ids), "run_ids": [str(run_id) for run_id in run_ids], **runs(run_ids)}
    return int(connection.execute(_NUMBER_RUNNING.for_table(connection), parameters).scalar_one())


def batches_of(jobs: Sequence[WaitingJob]) -> list[int]:
    """The batches of jobs, for an array in which NO_BATCH stands for None."""
    return [NO_BATCH if job.batch is None else job.batch for job in jobs]


def _given(
    run_id: UUID, jobs: Sequence[WaitingJob], published_until: Sequence[datetime]
) -> dict[str, object]:
    return {
        "run_id": run_id,
        **runs([run_id]),
        "job_ids": [str(job.job_id) for job in jobs],
        "batches": batches_of(jobs),
        "attempts": [job.attempt for job in jobs],
        "published_until": list(published_until),
    }
