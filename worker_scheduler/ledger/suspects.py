"""SQL of sync_suspects: waiting jobs whose message left the queue and may be lost, or with a worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.by_id import in_index_order
from worker_scheduler.ledger.waiting_jobs import NO_BATCH, WaitingJob, batches_of


@dataclass(frozen=True)
class Suspect:
    """A suspected job of a run. missed_at: when its message was not found with any worker, or None."""

    job: WaitingJob
    suspected_at: datetime
    missed_at: datetime | None


_NOTE = text(
    f"""
    INSERT INTO sync_suspects (job_id, run_id, queue, batch, attempt, suspected_at)
    SELECT job_id, :run_id, :queue, nullif(batch, {NO_BATCH}), attempt, :now
    FROM unnest(CAST(:job_ids AS uuid[]), CAST(:batches AS integer[]), CAST(:attempts AS smallint[]))
        AS found(job_id, batch, attempt)
    ON CONFLICT (job_id) DO NOTHING
    """
)

_RUNS = text("SELECT DISTINCT run_id FROM sync_suspects WHERE queue = :queue")

_PAGE = text(
    """
    SELECT job_id, batch, attempt, suspected_at, missed_at FROM sync_suspects
    WHERE run_id = :run_id AND job_id > :after ORDER BY job_id LIMIT :limit
    """
)

_ANY_MISSED = text(
    "SELECT EXISTS (SELECT FROM sync_suspects WHERE queue = :queue AND missed_at <= :missed_until)"
)

_DROP = text("DELETE FROM sync_suspects WHERE job_id = ANY(CAST(:job_ids AS uuid[]))")

_FORGET_AHEAD = text(
    "DELETE FROM sync_suspects WHERE queue = :queue AND greatest(suspected_at, missed_at) > :ahead_until"
)

_MISSED = text(
    """
    UPDATE sync_suspects SET missed_at = :now
    WHERE job_id = ANY(CAST(:job_ids AS uuid[])) AND missed_at IS NULL
    """
)


def note(
    connection: Connection, run_id: UUID, queue: str, jobs: Sequence[WaitingJob], now: datetime
) -> None:
    """Notes jobs as suspects, except those that are."""
    connection.execute(
        _NOTE,
        {
            "run_id": run_id,
            "queue": queue,
            "job_ids": [str(job.job_id) for job in jobs],
            "batches": batches_of(jobs),
            "attempts": [job.attempt for job in jobs],
            "now": now,
        },
    )


def runs_of(connection: Connection, queue: str) -> list[UUID]:
    """The runs that have suspects in the queue."""
    return list(connection.execute(_RUNS, {"queue": queue}).scalars())


def page(connection: Connection, run_id: UUID, *, after: UUID, limit: int) -> list[Suspect]:
    """The run's suspects with a higher id than `after`, in the order of their ids, within a transaction."""
    in_index_order(connection)
    rows = connection.execute(_PAGE, {"run_id": run_id, "after": after, "limit": limit})
    return [
        Suspect(WaitingJob(row.job_id, row.batch, row.attempt), row.suspected_at, row.missed_at)
        for row in rows
    ]


def any_missed(connection: Connection, queue: str, missed_until: datetime) -> bool:
    """Whether a suspect of the queue has been missed since `missed_until` or longer."""
    parameters = {"queue": queue, "missed_until": missed_until}
    return bool(connection.execute(_ANY_MISSED, parameters).scalar_one())


def drop(connection: Connection, job_ids: Iterable[object]) -> None:
    """Forgets suspects, by ids that need not be those of suspects."""
    connection.execute(_DROP, {"job_ids": [str(job_id) for job_id in job_ids]})


def forget_ahead(connection: Connection, queue: str, ahead_until: datetime) -> None:
    """Forgets the suspects of the queue that are from a server whose clock was set back since."""
    connection.execute(_FORGET_AHEAD, {"queue": queue, "ahead_until": ahead_until})


def mark_missed(connection: Connection, job_ids: Iterable[UUID], now: datetime) -> None:
    """Notes for suspects that a look at the workers' messages did not find theirs."""
    connection.execute(_MISSED, {"job_ids": [str(job_id) for job_id in job_ids], "now": now})
