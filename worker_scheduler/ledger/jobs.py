"""SQL of sync_jobs after their claim: renews their leases, ends attempts, counts jobs.

Each change of state names the state it starts from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from worker_scheduler.leases import Renewal
from worker_scheduler.ledger.attempts import (
    COLUMNS,
    AttemptStatement,
    ClaimedJob,
    by_job,
    claimed_job,
    parameters_of,
)
from worker_scheduler.ledger.by_id import within_runs
from worker_scheduler.ledger.events import GIVEN_REASON, JobEvent, noted
from worker_scheduler.ledger.formats import execute_with_text, raw, text_of
from worker_scheduler.ledger.lease_sql import WAITED
from worker_scheduler.ledger.months import month_of, run_ids_of
from worker_scheduler.ledger.names import is_divided
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.reasons import Reason

LONGEST_ERROR = 500
"""Characters of an error message that a row holds."""

# One statement per final state: in an adopted table status may be an enum, which takes no text parameter.
_FINISH = """
    UPDATE sync_jobs j SET status = '{status}', error_message = :error_message,
        completed_at = :now, leased_until = NULL {more}
    WHERE {{job}} AND status || '' = 'RUNNING' AND attempt = :attempt
"""
_REASON = ", reason_class = :reason_class, reason_fingerprint = :reason_fingerprint"
_COMPLETE = by_job(_FINISH.format(status=JobStatus.COMPLETED, more=""))
_END = {
    status: by_job(noted(_FINISH.format(status=status, more=_REASON), event))
    for status, event in ((JobStatus.FAILED, JobEvent.FAILED), (JobStatus.SKIPPED, JobEvent.SKIPPED))
}

_PUT_OFF = by_job(
    noted(
        """
        UPDATE sync_jobs j SET status = 'PENDING', error_message = :error_message,
            not_before = :not_before, leased_until = NULL
        WHERE {job} AND status || '' = 'RUNNING' AND attempt = :attempt
        """,
        JobEvent.PUT_OFF,
        GIVEN_REASON,
    )
)

# An interruption by the worker's stop. The job is due at once, so that it need not wait for its lease.
_HAND_BACK = by_job(
    noted(
        """
        UPDATE sync_jobs j SET status = 'PENDING', error_message = NULL, not_before = :now,
            leased_until = NULL, interruptions = interruptions + 1, attempts_allowed = :attempts_allowed
        WHERE {job} AND status || '' = 'RUNNING' AND attempt = :attempt
        """,
        JobEvent.HANDED_BACK,
    )
)

# Without its lease: a pass that is publishing the job would otherwise note it as published.
_POSTPONE = text(
    """
    UPDATE sync_jobs SET not_before = :not_before, leased_until = NULL
    WHERE job_id = :job_id AND status || '' = 'PENDING'
    """
)

_LOCK_UNLESS_LOCKED = by_job("SELECT job_id FROM sync_jobs WHERE {job} FOR UPDATE SKIP LOCKED")

_ATTEMPTS = """
    SELECT job_id, attempt
    FROM unnest(CAST(:job_ids AS uuid[]), CAST(:attempts AS smallint[])) AS given(job_id, attempt)
"""


def _extend_leases(within: str) -> TextClause:
    """The statement that renews the leases of attempts; returns those that it did not renew, and whether
    each one still holds its job, so that only its row was locked.
    """
    running = f"{within} AND j.status || '' = 'RUNNING'"
    runs = f"j.job_id = a.job_id AND j.attempt = a.attempt AND {running}"
    return text(
        f"""
        WITH given AS MATERIALIZED ({_ATTEMPTS}), held AS MATERIALIZED (
            SELECT j.job_id, j.attempt FROM sync_jobs j
            WHERE j.job_id = ANY(CAST(:job_ids AS uuid[])) AND {running}
                AND ((j.job_id, j.attempt) IN (SELECT g.job_id, g.attempt FROM given g)) IS TRUE
            FOR UPDATE OF j SKIP LOCKED
        ), renewed AS (
            UPDATE sync_jobs j SET leased_until = :leased_until + {WAITED} FROM held a WHERE {runs}
            RETURNING j.job_id
        )
        SELECT a.job_id, EXISTS (SELECT FROM sync_jobs j WHERE {runs}) AS holds
        FROM given a WHERE NOT EXISTS (SELECT FROM renewed WHERE renewed.job_id = a.job_id)
        """
    )


_EXTEND_LEASES = AttemptStatement(
    within_run=_extend_leases(within_runs("j.run_id")), by_id_only=_extend_leases("true")
)
_ATTEMPTS_PER_STATEMENT = 1000

_RUNNING = text(f"SELECT {COLUMNS} FROM sync_jobs WHERE job_id = :job_id AND status = 'RUNNING'")

_COUNT = text(
    f"""
    SELECT {raw("status")} AS status, count(*) AS job_count FROM sync_jobs
    WHERE partition_key = :partition_key GROUP BY 1
    """
)


def complete(connection: Connection, job: ClaimedJob, now: datetime) -> bool:
    """Moves a job RUNNING → COMPLETED; False if this attempt is no longer the one that runs."""
    parameters = {**parameters_of(job), "error_message": None, "now": now}
    return connection.execute(_COMPLETE.for_attempt(connection, job), parameters).rowcount == 1


def end(
    connection: Connection,
    job: ClaimedJob,
    status: Literal[JobStatus.FAILED, JobStatus.SKIPPED],
    error_message: str | None,
    reason: Reason,
    now: datetime,
) -> bool:
    """Moves a job RUNNING → FAILED or SKIPPED; False as for `complete`."""
    parameters = {**parameters_of(job), **_given(reason), "error_message": error_message, "now": now}
    return _store_error(connection, _END[status].for_attempt(connection, job), parameters) == 1


def put_off(
    connection: Connection,
    job: ClaimedJob,
    *,
    error_message: str | None,
    reason: Reason | None,
    not_before: datetime,
    now: datetime,
) -> bool:
    """Moves a job RUNNING → PENDING, to be published again at `not_before`; False as for `complete`.

    reason: None if the handler gave none.
    """
    parameters = {
        **parameters_of(job),
        **_given(reason),
        "error_message": error_message,
        "not_before": not_before,
        "now": now,
    }
    return _store_error(connection, _PUT_OFF.for_attempt(connection, job), parameters) == 1


def hand_back(
    connection: Connection, job: ClaimedJob, *, attempts_allowed: int | None, now: datetime
) -> bool:
    """Moves a job RUNNING → PENDING, due now: its worker is being stopped. Counts the interruption and
    sets how many attempts are allowed; False as for `complete`.
    """
    parameters = {**parameters_of(job), "attempts_allowed": attempts_allowed, "now": now}
    return connection.execute(_HAND_BACK.for_attempt(connection, job), parameters).rowcount == 1


def postpone(connection: Connection, job_id: UUID, not_before: datetime) -> bool:
    """Leaves a PENDING job PENDING, to be published again at `not_before`; False if it is not PENDING."""
    parameters = {"job_id": job_id, "not_before": not_before}
    return connection.execute(_POSTPONE, parameters).rowcount == 1


def is_locked(connection: Connection, job: ClaimedJob) -> bool:
    """Whether another transaction has locked the job's row, so that a change of it would wait."""
    statement = _LOCK_UNLESS_LOCKED.for_attempt(connection, job)
    return connection.execute(statement, parameters_of(job)).one_or_none() is None


def in_groups(jobs: Iterable[ClaimedJob]) -> list[list[ClaimedJob]]:
    """Attempts in groups for `extend_leases`: of runs of one month, and a thousand at most."""
    months: dict[date | None, list[ClaimedJob]] = defaultdict(list)
    for job in jobs:
        months[_month_of_run(job)].append(job)
    step = _ATTEMPTS_PER_STATEMENT
    return [group[at : at + step] for group in months.values() for at in range(0, len(group), step)]


def extend_leases(
    connection: Connection, group: Sequence[ClaimedJob], leased_until: datetime
) -> Renewal[ClaimedJob]:
    """Extends the leases of attempts, as their heartbeat. A row that another transaction has locked is
    skipped, so that it holds up no other. group: one of `in_groups`.
    """
    parameters: dict[str, object] = {
        "job_ids": [str(job.job_id) for job in group],
        "attempts": [job.attempt for job in group],
        "leased_until": leased_until,
    }
    month = _month_of_run(group[0])
    statement = _EXTEND_LEASES.by_id_only
    if month is not None and is_divided(connection):
        statement = _EXTEND_LEASES.within_run
        parameters |= runs_of(month)
    rows = connection.execute(statement, parameters)
    holds = {row.job_id: row.holds for row in rows}
    return Renewal(
        lost=[job for job in group if holds.get(job.job_id) is False],
        held_up=[job for job in group if holds.get(job.job_id) is True],
    )


def running(connection: Connection, job_id: UUID) -> ClaimedJob | None:
    """The attempt at the job that runs now, or None."""
    row = connection.execute(_RUNNING, {"job_id": job_id}).one_or_none()
    return None if row is None else claimed_job(connection, row)


def count_by_status(connection: Connection, partition_key: str) -> dict[str, int]:
    """Counts the jobs of a partition in each state, an older scheduler's rows included."""
    counts = {status.value: 0 for status in JobStatus}
    for row in connection.execute(_COUNT, {"partition_key": partition_key}):
        counts[str(text_of(connection, row.status))] = row.job_count
    return counts


def _given(reason: Reason | None) -> dict[str, object]:
    name, number = (None, None) if reason is None else reason
    return {"reason_class": name, "reason_fingerprint": number}


def _store_error(connection: Connection, statement: TextClause, parameters: dict[str, object]) -> int:
    """Executes a statement that stores an error_message; returns how many rows it changed."""
    return execute_with_text(
        connection, statement, parameters, "error_message", longest=LONGEST_ERROR
    ).rowcount


def _month_of_run(job: ClaimedJob) -> date | None:
    return None if job.run_id is None else month_of(job.run_id)


def runs_of(month: date) -> dict[str, object]:
    """The parameters of `within_runs` for the runs of a month."""
    first, following = run_ids_of(month)
    return {"first_run_id": first, "last_run_id": UUID(int=following.int - 1)}
