"""SQL of sync_batches: claims batches under a lease and marks them as enqueued. Changes no job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.job_ids import JobIds
from worker_scheduler.ledger.by_id import by_id, in_index_order, runs
from worker_scheduler.ledger.lease_sql import WAITED, is_over
from worker_scheduler.ledger.stopped_runs import IS_STOPPED


@dataclass(frozen=True)
class ClaimedBatch:
    """A batch that a dispatcher may publish until its lease runs out. job_ids: its jobs that still wait."""

    run_id: UUID
    number: int
    group_id: UUID
    generation: int
    job_ids: JobIds


# SKIP LOCKED: two dispatchers take different batches instead of waiting for each other.
# Jobs that were published again on their own are left out: they have other messages.
# The ids come as one text, because one row per id would cost more in Python than the text does.
_CLAIM = by_id(
    f"""
    WITH free AS (
        SELECT run_id, number FROM sync_batches
        WHERE run_id = :run_id AND enqueued_at IS NULL
            AND NOT {IS_STOPPED.format(run_id="CAST(:run_id AS uuid)")}
            AND (claimed_until IS NULL OR {is_over("claimed_until")})
        ORDER BY number LIMIT :limit FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE sync_batches b SET claimed_by = :claimed_by, claimed_until = :claimed_until + {WAITED}
        FROM free WHERE b.run_id = free.run_id AND b.number = free.number AND b.enqueued_at IS NULL
        RETURNING b.run_id, b.number, b.group_id, b.generation, b.first_job_id, b.last_job_id
    )
    SELECT c.run_id, c.number, c.group_id, c.generation, coalesce(ids.of_all, '') AS job_ids
    FROM claimed c CROSS JOIN LATERAL (
        SELECT string_agg(waiting.ids, '') AS of_all FROM (
            SELECT CAST(j.job_id AS text) || CAST(j.user_id AS text) AS ids FROM sync_jobs j
            WHERE j.job_id BETWEEN c.first_job_id AND c.last_job_id AND {{within_runs}}
                AND j.status || '' = 'PENDING' AND j.not_before IS NULL AND j.republished_in IS NULL
            ORDER BY j.job_id) waiting) ids
    ORDER BY c.number
    """
)

# Several batches at once, by arrays of the same length. An epoch that is absent is an empty text: Postgres
# does not read NULL in an array where `array_nulls` is off.
_ENQUEUED = text(
    """
    UPDATE sync_batches b SET enqueued_at = :now, broker_epoch = CAST(nullif(claimed.epoch, '') AS uuid),
        claimed_by = NULL, claimed_until = NULL
    FROM unnest(CAST(:numbers AS integer[]), CAST(:epochs AS text[])) AS claimed(number, epoch)
    WHERE b.run_id = :run_id AND b.number = claimed.number
        AND b.enqueued_at IS NULL AND b.claimed_by = :claimed_by
    RETURNING b.number
    """
)

_RELEASE = text(
    """
    UPDATE sync_batches SET claimed_by = NULL, claimed_until = NULL
    WHERE run_id = :run_id AND number = ANY(CAST(:numbers AS integer[]))
        AND enqueued_at IS NULL AND claimed_by = :claimed_by
    """
)

# A batch sent in an earlier broker epoch: its messages are gone. If one of its jobs still waits, the whole
# batch becomes unsent again, as a new generation; otherwise it only gets the present epoch. OFFSET keeps
# Postgres from joining: with statistics older than the run it would read the whole run for each batch. The
# order is that of the index that finds the run's open jobs.
_LOST = """
    b.run_id = :run_id AND b.enqueued_at IS NOT NULL AND b.broker_epoch = ANY(CAST(:lost AS uuid[]))
    AND {maybe} EXISTS (SELECT FROM sync_jobs j
        WHERE j.run_id = :run_id AND j.job_id BETWEEN b.first_job_id AND b.last_job_id
            AND j.status = 'PENDING' AND j.not_before IS NULL AND j.republished_in IS NULL
        ORDER BY j.job_id LIMIT 1 OFFSET 0)
"""

_PUT_BACK = text(
    f"""
    UPDATE sync_batches b SET enqueued_at = NULL, broker_epoch = NULL,
        generation = generation + 1, group_id = gen_random_uuid()
    WHERE {_LOST.format(maybe="")}
    """
)

_NOTE_AS_SEEN = text(
    f"""
    UPDATE sync_batches b SET broker_epoch = :broker_epoch WHERE {_LOST.format(maybe="NOT")}
    """
)

_BROKER_EPOCHS = text(
    """
    SELECT broker_epoch FROM sync_batches
    WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND broker_epoch IS NOT NULL
    UNION
    SELECT republished_in FROM sync_jobs
    WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND republished_in IS NOT NULL AND status = 'PENDING'
        AND not_before IS NULL
    """
)

_HAS_TO_SEND = text(
    f"""
    SELECT EXISTS (SELECT FROM sync_batches WHERE run_id = :run_id AND enqueued_at IS NULL)
        AND NOT {IS_STOPPED.format(run_id="CAST(:run_id AS uuid)")}
    """
)

_UNSENT_JOBS = text(
    """
    SELECT coalesce(sum(jobs), 0) FROM sync_batches
    WHERE run_id = :run_id AND enqueued_at IS NULL
    """
)


def claim(
    connection: Connection,
    run_id: UUID,
    claimed_by: UUID,
    *,
    limit: int,
    now: datetime,
    claimed_until: datetime,
) -> list[ClaimedBatch]:
    """Claims the first unsent batches that no dispatcher holds, at most `limit`."""
    rows = connection.execute(
        _CLAIM.for_table(connection),
        {
            "run_id": run_id,
            **runs([run_id]),
            "claimed_by": claimed_by,
            "limit": limit,
            "now": now,
            "claimed_until": claimed_until,
        },
    )
    return [ClaimedBatch(**{**row._mapping, "job_ids": JobIds(row.job_ids)}) for row in rows]


def mark_enqueued(
    connection: Connection,
    claimed: Sequence[ClaimedBatch],
    claimed_by: UUID,
    *,
    broker_epochs: Sequence[UUID | None],
    now: datetime,
) -> set[int]:
    """Marks batches as enqueued, each in its broker epoch; returns the numbers of those that `claimed_by`
    still held.
    """
    epochs = ["" if epoch is None else str(epoch) for epoch in broker_epochs]
    parameters = {**_claimed(claimed, claimed_by), "epochs": epochs, "now": now}
    return set(connection.execute(_ENQUEUED, parameters).scalars())


def release(connection: Connection, claimed: Sequence[ClaimedBatch], claimed_by: UUID) -> None:
    """Gives claimed batches back, so that the next tick need not wait for the lease."""
    connection.execute(_RELEASE, _claimed(claimed, claimed_by))


def broker_epochs(connection: Connection, run_ids: Iterable[UUID]) -> set[UUID]:
    """The broker epochs in which batches of these runs, or waiting jobs on their own, were published."""
    parameters = {"run_ids": [str(run_id) for run_id in run_ids]}
    return set(connection.execute(_BROKER_EPOCHS, parameters).scalars())


def put_back_lost(connection: Connection, run_id: UUID, lost: Iterable[UUID], broker_epoch: UUID) -> int:
    """Makes batches unsent again, within a transaction, that were enqueued in a lost broker epoch; returns
    how many.

    lost: the epochs that are over. broker_epoch: the present one.
    """
    parameters = {
        "run_id": run_id,
        "lost": [str(epoch) for epoch in lost],
        "broker_epoch": broker_epoch,
    }
    in_index_order(connection)
    put_back = connection.execute(_PUT_BACK, parameters).rowcount
    connection.execute(_NOTE_AS_SEEN, parameters)
    return put_back


def has_to_send(connection: Connection, run_id: UUID) -> bool:
    """Whether a batch of the run is unsent and may be sent: the run is neither paused nor cancelled."""
    return bool(connection.execute(_HAS_TO_SEND, {"run_id": run_id}).scalar_one())


def unsent_jobs(connection: Connection, run_id: UUID) -> int:
    """Counts the jobs in those batches of the run that have not been enqueued."""
    return int(connection.execute(_UNSENT_JOBS, {"run_id": run_id}).scalar_one())


def _claimed(claimed: Sequence[ClaimedBatch], claimed_by: UUID) -> dict[str, object]:
    return {
        "run_id": claimed[0].run_id,
        "numbers": [batch.number for batch in claimed],
        "claimed_by": claimed_by,
    }
