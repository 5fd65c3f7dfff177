"""One attempt at a job, and statements about the job of an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from worker_scheduler.ledger.by_id import within_runs
from worker_scheduler.ledger.formats import raw, text_of
from worker_scheduler.ledger.names import is_divided


@dataclass(frozen=True)
class ClaimedJob:
    """One attempt at a job, held by a worker until its lease runs out. The fields are those of _JOB.

    attempts_allowed: None means as many as the setting says. interruptions: how many earlier attempts were
    cut short because their worker was stopped.
    """

    job_id: UUID
    run_id: UUID | None
    user_id: UUID
    github_login: str | None
    partition_key: str
    triggered_by: str
    backfill_days: int | None
    attempt: int
    attempts_allowed: int | None = None
    interruptions: int = 0


# A login comes from the users, and an older scheduler's rows have any key: none may stop a claim.
COLUMNS = (
    f"job_id, run_id, user_id, {raw('github_login')}, {raw('partition_key')}, {raw('triggered_by')},"
    " backfill_days, attempt, attempts_allowed, interruptions"
)
"""The columns that `claimed_job` reads."""


class AttemptStatement(NamedTuple):
    """A statement about one job, with and without a range of run ids around it.

    With the range Postgres plans for one partition and locks only that one, in a fraction of the time. A
    table that is not divided needs none.
    """

    within_run: TextClause
    by_id_only: TextClause

    def for_attempt(self, connection: Connection, job: ClaimedJob) -> TextClause:
        """The variant whose parameters `parameters_of` gives."""
        use_run = job.run_id is not None and is_divided(connection)
        return self.within_run if use_run else self.by_id_only


def by_job(statement: str) -> AttemptStatement:
    """A statement about one job: {job} stands for its condition, {columns} for what `claimed_job` reads."""
    by_id = "job_id = :job_id"
    return AttemptStatement(
        within_run=text(statement.format(job=f"{by_id} AND {within_runs()}", columns=COLUMNS)),
        by_id_only=text(statement.format(job=by_id, columns=COLUMNS)),
    )


def parameters_of(job: ClaimedJob) -> dict[str, object]:
    """The parameters by which a statement made by `by_job` gets an attempt."""
    run = {} if job.run_id is None else {"first_run_id": job.run_id, "last_run_id": job.run_id}
    return {"job_id": job.job_id, "attempt": job.attempt, **run}


def claimed_job(connection: Connection, row: Row[Any]) -> ClaimedJob:
    """The attempt in a row that begins with COLUMNS."""
    job_id, run_id, user_id, login, partition_key, triggered_by, backfill_days, *counts = tuple(row)
    attempt, attempts_allowed, interruptions, *_ = counts
    return ClaimedJob(
        job_id=job_id,
        run_id=run_id,
        user_id=user_id,
        github_login=text_of(connection, login),
        partition_key=text_of(connection, partition_key) or "",
        triggered_by=text_of(connection, triggered_by) or "",
        backfill_days=backfill_days,
        attempt=attempt,
        attempts_allowed=attempts_allowed,
        interruptions=interruptions,
    )
