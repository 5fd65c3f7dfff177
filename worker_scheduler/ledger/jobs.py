"""SQL of sync_jobs after planning: claims, finishes and counts jobs. Each move is guarded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from worker_scheduler.ledger.months import month_of, run_ids_of
from worker_scheduler.ledger.tables import JobStatus


@dataclass(frozen=True)
class ClaimedJob:
    """A job that is ours to do, under this attempt number, until its lease runs out. As _JOB returns it."""

    job_id: UUID
    run_id: UUID | None
    user_id: UUID
    github_login: str | None
    partition_key: str
    triggered_by: str
    backfill_days: int | None
    attempt: int


_JOB = "job_id, run_id, user_id, github_login, partition_key, triggered_by, backfill_days, attempt"


def _by_job(statement: str) -> dict[bool, TextClause]:
    """The statement for a job of which the run or its month is known, and for one of which it is not.

    Known, one partition is planned for and locked, in a fraction of the time.
    """
    job = "job_id = :job_id"
    known = f"{job} AND run_id BETWEEN :first_run_id AND :last_run_id"
    return {
        is_known: text(statement.format(job=where, columns=_JOB))
        for is_known, where in ((True, known), (False, job))
    }


# A lease on a PENDING job: reconcile is publishing it anew, so its time has come, whatever a clock here
# that is behind says; the message, once refused, would be gone.
_CLAIM = _by_job(
    """
    UPDATE sync_jobs SET status = 'RUNNING', attempt = attempt + 1, started_at = :now,
        leased_until = :leased_until, not_before = NULL
    WHERE {job} AND status = 'PENDING'
        AND (not_before IS NULL OR not_before <= :now OR leased_until IS NOT NULL)
    RETURNING {columns}
    """
)

# One text a target state: an older table's status may be an enum, which a parameter would not fit.
_FINISH = {
    (status, known): statement
    for status in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.SKIPPED)
    for known, statement in _by_job(
        f"""
        UPDATE sync_jobs SET status = '{status}', error_message = :error_message,
            completed_at = :now, leased_until = NULL
        WHERE {{job}} AND status = 'RUNNING' AND attempt = :attempt
        """
    ).items()
}

_PUT_OFF = _by_job(
    """
    UPDATE sync_jobs SET status = 'PENDING', error_message = :error_message, not_before = :not_before,
        leased_until = NULL
    WHERE {job} AND status = 'RUNNING' AND attempt = :attempt
    """
)

_EXTEND_LEASE = _by_job(
    """
    UPDATE sync_jobs SET leased_until = :leased_until
    WHERE {job} AND status = 'RUNNING' AND attempt = :attempt
    """
)

_RUNNING = text(f"SELECT {_JOB} FROM sync_jobs WHERE job_id = :job_id AND status = 'RUNNING'")

_STATUS = text("SELECT CAST(status AS text) FROM sync_jobs WHERE job_id = :job_id")

_COUNT = text(
    """
    SELECT CAST(status AS text) AS status, count(*) AS jobs FROM sync_jobs
    WHERE partition_key = :partition_key GROUP BY 1
    """
)


def claim(connection: Connection, job_id: UUID, now: datetime, leased_until: datetime) -> ClaimedJob | None:
    """PENDING → RUNNING; None where the job is not PENDING or does not exist."""
    parameters = {"job_id": job_id, "now": now, "leased_until": leased_until}
    month = month_of(job_id)
    if month is not None:
        first, following = run_ids_of(month)
        where = {"first_run_id": first, "last_run_id": UUID(int=following.int - 1)}
        row = connection.execute(_CLAIM[True], {**parameters, **where}).one_or_none()
        if row is not None:
            return ClaimedJob(*row)
    # Not PENDING, mostly; or an older scheduler's, or of a run of an earlier version, whose id is random.
    row = connection.execute(_CLAIM[False], parameters).one_or_none()
    return None if row is None else ClaimedJob(*row)


def finish(
    connection: Connection,
    job: ClaimedJob,
    status: JobStatus,
    error_message: str | None,
    now: datetime,
) -> bool:
    """RUNNING, in this attempt → `status`; False where the job is no longer ours."""
    statement = _FINISH[status, job.run_id is not None]
    parameters = {**_attempt(job), "error_message": error_message, "now": now}
    return connection.execute(statement, parameters).rowcount == 1


def put_off(
    connection: Connection,
    job: ClaimedJob,
    *,
    error_message: str | None,
    not_before: datetime,
) -> bool:
    """RUNNING, in this attempt → PENDING, to be published anew then; False where it is not ours."""
    parameters = {**_attempt(job), "error_message": error_message, "not_before": not_before}
    return connection.execute(_PUT_OFF[job.run_id is not None], parameters).rowcount == 1


def extend_lease(connection: Connection, job: ClaimedJob, leased_until: datetime) -> bool:
    """The heartbeat of one attempt; False where it is no longer the one that runs."""
    parameters = {**_attempt(job), "leased_until": leased_until}
    return connection.execute(_EXTEND_LEASE[job.run_id is not None], parameters).rowcount == 1


def running(connection: Connection, job_id: UUID) -> ClaimedJob | None:
    """The attempt at the job that runs now; None where none does."""
    row = connection.execute(_RUNNING, {"job_id": job_id}).one_or_none()
    return None if row is None else ClaimedJob(*row)


def status_of(connection: Connection, job_id: UUID) -> str | None:
    """The state of a job; None where there is no such job."""
    status: str | None = connection.execute(_STATUS, {"job_id": job_id}).scalar_one_or_none()
    return status


def count_by_status(connection: Connection, partition_key: str) -> dict[str, int]:
    """Jobs of a partition by state, an older scheduler's rows included; absent states are 0."""
    counts = {status.value: 0 for status in JobStatus}
    for row in connection.execute(_COUNT, {"partition_key": partition_key}):
        counts[row.status] = row.jobs
    return counts


def _attempt(job: ClaimedJob) -> dict[str, object]:
    run = {} if job.run_id is None else {"first_run_id": job.run_id, "last_run_id": job.run_id}
    return {"job_id": job.job_id, "attempt": job.attempt, **run}
