"""SQL of sync_batches: claims a batch under a lease, reads its jobs, marks it. No job row changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class ClaimedBatch:
    """A batch that is ours to publish until its lease runs out."""

    run_id: UUID
    number: int
    group_id: UUID
    generation: int
    jobs: int
    first_job_id: UUID
    last_job_id: UUID


@dataclass(frozen=True)
class BatchJob:
    """A job of a batch, as its message needs it: ids as text."""

    job_id: str
    user_id: str


# SKIP LOCKED: dispatchers that meet take different batches instead of waiting for each other.
_CLAIM = text(
    """
    UPDATE sync_batches SET claimed_by = :claimed_by, claimed_until = :claimed_until
    WHERE (run_id, number) = (
        SELECT run_id, number FROM sync_batches
        WHERE run_id = :run_id AND enqueued_at IS NULL
            AND (claimed_until IS NULL OR claimed_until <= :now)
        ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)
        AND enqueued_at IS NULL
    RETURNING run_id, number, group_id, generation, jobs, first_job_id, last_job_id
    """
)

# As one text: a row an id would cost more to take apart here than to read there.
_JOBS = text(
    """
    SELECT coalesce(string_agg(CAST(job_id AS text) || CAST(user_id AS text), '' ORDER BY job_id), '')
    FROM sync_jobs
    WHERE job_id BETWEEN :first_job_id AND :last_job_id AND run_id = :run_id AND status = 'PENDING'
        AND not_before IS NULL
    """
)
_ID = 36
"""Characters of a UUID as text."""

_ENQUEUED = text(
    """
    UPDATE sync_batches SET enqueued_at = :now, broker_epoch = :broker_epoch,
        claimed_by = NULL, claimed_until = NULL
    WHERE run_id = :run_id AND number = :number AND enqueued_at IS NULL AND claimed_by = :claimed_by
    """
)

_RELEASE = text(
    """
    UPDATE sync_batches SET claimed_by = NULL, claimed_until = NULL
    WHERE run_id = :run_id AND number = :number AND enqueued_at IS NULL AND claimed_by = :claimed_by
    """
)

# Sent in an earlier life of the broker's data: its messages are gone. Where a job of it still waits,
# the whole batch is unsent again, as a new generation; where none does, it is only noted as seen.
_LOST = """
    b.run_id = :run_id AND b.enqueued_at IS NOT NULL AND b.broker_epoch = ANY(CAST(:lost AS uuid[]))
    AND {maybe} EXISTS (SELECT FROM sync_jobs j
        WHERE j.run_id = b.run_id AND j.job_id BETWEEN b.first_job_id AND b.last_job_id
            AND j.status = 'PENDING' AND j.not_before IS NULL)
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
    SELECT DISTINCT broker_epoch FROM sync_batches
    WHERE run_id = ANY(CAST(:run_ids AS uuid[])) AND broker_epoch IS NOT NULL
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


def claim_next(
    connection: Connection, run_id: UUID, claimed_by: UUID, now: datetime, claimed_until: datetime
) -> ClaimedBatch | None:
    """The first unsent batch that nobody holds, now held by us; None where there is none."""
    row = connection.execute(
        _CLAIM,
        {"run_id": run_id, "claimed_by": claimed_by, "now": now, "claimed_until": claimed_until},
    ).one_or_none()
    return None if row is None else ClaimedBatch(**row._mapping)


def jobs_of(connection: Connection, batch: ClaimedBatch) -> list[BatchJob]:
    """The batch's jobs that still wait, in the order of their ids."""
    ids: str = connection.execute(
        _JOBS,
        {
            "run_id": batch.run_id,
            "first_job_id": batch.first_job_id,
            "last_job_id": batch.last_job_id,
        },
    ).scalar_one()
    return [
        BatchJob(job_id=ids[start : start + _ID], user_id=ids[start + _ID : start + 2 * _ID])
        for start in range(0, len(ids), 2 * _ID)
    ]


def mark_enqueued(
    connection: Connection,
    batch: ClaimedBatch,
    claimed_by: UUID,
    *,
    broker_epoch: UUID | None,
    now: datetime,
) -> bool:
    """Claimed by us → enqueued; False where the lease ran out and another holds it."""
    return _move(connection, _ENQUEUED, batch, claimed_by, broker_epoch=broker_epoch, now=now)


def release(connection: Connection, batch: ClaimedBatch, claimed_by: UUID) -> bool:
    """Claimed by us → unclaimed, so that the next tick need not wait for the lease."""
    return _move(connection, _RELEASE, batch, claimed_by)


def broker_epochs(connection: Connection, run_ids: Iterable[UUID]) -> set[UUID]:
    """The lives of the broker in which the batches of these runs went out."""
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


def _move(
    connection: Connection, statement: object, batch: ClaimedBatch, claimed_by: UUID, **more: object
) -> bool:
    parameters = {"run_id": batch.run_id, "number": batch.number, "claimed_by": claimed_by, **more}
    return connection.execute(statement, parameters).rowcount == 1  # type: ignore[call-overload, no-any-return]
