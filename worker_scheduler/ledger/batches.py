"""SQL of sync_batches: claims batches with their jobs under a lease, marks them. No job row changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.job_ids import JobIds


@dataclass(frozen=True)
class ClaimedBatch:
    """A batch that is ours to publish until its lease runs out. jobs: those of it that still wait."""

    run_id: UUID
    number: int
    group_id: UUID
    generation: int
    jobs: JobIds


# SKIP LOCKED: dispatchers that meet take different batches instead of waiting for each other.
# Without the jobs that were published anew since: they have messages of their own.
# The ids as one text: a row an id would cost more to take apart here than to read there.
_CLAIM = text(
    """
    WITH free AS (
        SELECT run_id, number FROM sync_batches
        WHERE run_id = :run_id AND enqueued_at IS NULL
            AND (claimed_until IS NULL OR claimed_until <= :now)
        ORDER BY number LIMIT :limit FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE sync_batches b SET claimed_by = :claimed_by, claimed_until = :claimed_until
        FROM free WHERE b.run_id = free.run_id AND b.number = free.number AND b.enqueued_at IS NULL
        RETURNING b.run_id, b.number, b.group_id, b.generation, b.first_job_id, b.last_job_id
    )
    SELECT c.run_id, c.number, c.group_id, c.generation, coalesce(ids.of_all, '') AS jobs
    FROM claimed c CROSS JOIN LATERAL (
        SELECT string_agg(waiting.ids, '') AS of_all FROM (
            SELECT CAST(j.job_id AS text) || CAST(j.user_id AS text) AS ids FROM sync_jobs j
            WHERE j.job_id BETWEEN c.first_job_id AND c.last_job_id AND j.run_id = :run_id
                AND j.status = 'PENDING' AND j.not_before IS NULL AND j.republished_in IS NULL
            ORDER BY j.job_id) waiting) ids
    ORDER BY c.number
    """
)

# Of several batches at once, by arrays of the same length.
_OURS = """
    FROM unnest(CAST(:numbers AS integer[]), CAST(:epochs AS uuid[])) AS ours(number, broker_epoch)
    WHERE b.run_id = :run_id AND b.number = ours.number
        AND b.enqueued_at IS NULL AND b.claimed_by = :claimed_by
"""

_ENQUEUED = text(
    f"""
    UPDATE sync_batches b SET enqueued_at = :now, broker_epoch = ours.broker_epoch,
        claimed_by = NULL, claimed_until = NULL
    {_OURS}
    RETURNING b.number
    """
)

_RELEASE = text(f"UPDATE sync_batches b SET claimed_by = NULL, claimed_until = NULL {_OURS}")

# Sent in an earlier life of the broker's data: its messages are gone. Where a job of it still waits,
# the whole batch is unsent again, as a new generation; where none does, it is only noted as seen.
_LOST = """
    b.run_id = :run_id AND b.enqueued_at IS NOT NULL AND b.broker_epoch = ANY(CAST(:lost AS uuid[]))
    AND {maybe} EXISTS (SELECT FROM sync_jobs j
        WHERE j.run_id = b.run_id AND j.job_id BETWEEN b.first_job_id AND b.last_job_id
            AND j.status = 'PENDING' AND j.not_before IS NULL AND j.republished_in IS NULL)
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

_HAS_UNSENT = text(
    "SELECT EXISTS (SELECT FROM sync_batches WHERE run_id = :run_id AND enqueued_at IS NULL)"
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
    """The first unsent batches that nobody holds, now held by us; at most `limit`."""
    rows = connection.execute(
        _CLAIM,
        {
            "run_id": run_id,
            "claimed_by": claimed_by,
            "limit": limit,
            "now": now,
            "claimed_until": claimed_until,
        },
    )
    return [ClaimedBatch(**{**row._mapping, "jobs": JobIds(row.jobs)}) for row in rows]


def mark_enqueued(
    connection: Connection,
    claimed: Sequence[ClaimedBatch],
    claimed_by: UUID,
    *,
    broker_epochs: Sequence[UUID | None],
    now: datetime,
) -> set[int]:
    """Claimed by us → enqueued, each in its life of the broker's data; the numbers of those that were
    still ours.
    """
    parameters = _ours(claimed, claimed_by, broker_epochs)
    return set(connection.execute(_ENQUEUED, {**parameters, "now": now}).scalars())


def release(connection: Connection, claimed: Sequence[ClaimedBatch], claimed_by: UUID) -> None:
    """Claimed by us → unclaimed, so that the next tick need not wait for the lease."""
    connection.execute(_RELEASE, _ours(claimed, claimed_by, [None] * len(claimed)))


def broker_epochs(connection: Connection, run_ids: Iterable[UUID]) -> set[UUID]:
    """The lives of the broker in which batches of these runs went out, or waiting jobs of them alone."""
    parameters = {"run_ids": [str(run_id) for run_id in run_ids]}
    return set(connection.execute(_BROKER_EPOCHS, parameters).scalars())


def put_back_lost(connection: Connection, run_id: UUID, lost: Iterable[UUID], broker_epoch: UUID) -> int:
    """Enqueued in a life that is over → unsent, a generation later; says how many batches.

    lost: the lives that are over. broker_epoch: the one of now.
    """
    parameters = {
        "run_id": run_id,
        "lost": [str(epoch) for epoch in lost],
        "broker_epoch": broker_epoch,
    }
    put_back = connection.execute(_PUT_BACK, parameters).rowcount
    connection.execute(_NOTE_AS_SEEN, parameters)
    return put_back


def has_unsent(connection: Connection, run_id: UUID) -> bool:
    """Whether a batch of the run has not been enqueued."""
    return bool(connection.execute(_HAS_UNSENT, {"run_id": run_id}).scalar_one())


def unsent_jobs(connection: Connection, run_id: UUID) -> int:
    """Jobs in the batches of the run that have not been enqueued."""
    return int(connection.execute(_UNSENT_JOBS, {"run_id": run_id}).scalar_one())


def _ours(
    claimed: Sequence[ClaimedBatch], claimed_by: UUID, epochs: Sequence[UUID | None]
) -> dict[str, object]:
    return {
        "run_id": claimed[0].run_id,
        "numbers": [batch.number for batch in claimed],
        "epochs": [None if epoch is None else str(epoch) for epoch in epochs],
        "claimed_by": claimed_by,
    }
