"""Tries jobs on an adopted table and undoes everything again; `migrate` calls it after an adoption.

A CHECK, a domain, a trigger or a unique index over states may refuse a job. Only Postgres can tell, so
`migrate` asks it at once; otherwise the first run at night would find out. This module uses the present
statements of `claiming.py` and `jobs.py`, since those are what the table must accept.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID, uuid4

from psycopg.errors import ForeignKeyViolation
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from worker_scheduler import logs, reasons
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger import claiming, jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import is_outage, postgres_reason
from worker_scheduler.ledger.months import new_run_id
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.partition_keys import LONGEST_KEY

log = logs.get_logger(__name__)

REMEDY = "drop what refuses it, or rename the older table sync_jobs and let migrate create a new one"
_LONGEST_ERROR = "x" * jobs.LONGEST_ERROR
_REASON = reasons.ours(reasons.SKIPPED, _LONGEST_ERROR)
_Moved = TypeVar("_Moved")

_NOW = text("SELECT CURRENT_TIMESTAMP")
# A user who exists, since the column may refer to a table of users.
_A_USER = text("SELECT user_id, github_login FROM sync_jobs LIMIT 1")
_INSERT = text(
    """
    INSERT INTO sync_jobs (job_id, user_id, github_login, status, backfill_days, triggered_by,
                           partition_key, created_at, run_id)
    VALUES (:job_id, :user_id, :github_login, 'PENDING', :backfill_days, :triggered_by,
            :partition_key, :now, :run_id)
    """
)
_FIRE_DEFERRED = text("SET CONSTRAINTS ALL IMMEDIATE")


def try_jobs(connection: Connection) -> None:
    """Inserts three jobs of one user, moves them through every state, and rolls back.

    Raises ConfigurationError naming the step that the table refuses.
    """
    user = connection.execute(_A_USER).one_or_none()
    savepoint = connection.begin_nested()
    try:
        _through_every_state(connection, *(user or (uuid4(), "octocat")))
    except ConfigurationError as error:
        cause = getattr(error.__cause__, "orig", None)
        if user is not None or not isinstance(cause, ForeignKeyViolation):
            raise
        log.info("sync_jobs adopted without trial inserts: the table is empty and has foreign keys")
    finally:
        savepoint.rollback()


def _through_every_state(connection: Connection, user_id: UUID, github_login: str | None) -> None:
    now: datetime = connection.execute(_NOW).scalar_one()

    def insert(triggered_by: str, partition_key: str, backfill_days: int | None) -> UUID:
        job_id = new_run_id(now)
        parameters = {
            "job_id": job_id,
            "user_id": user_id,
            "github_login": github_login,
            "backfill_days": backfill_days,
            "triggered_by": triggered_by,
            "partition_key": partition_key,
            "now": now,
            "run_id": new_run_id(now),
        }
        _try(
            f"a PENDING job of {triggered_by}",
            lambda: connection.execute(_INSERT, parameters).rowcount == 1,
        )
        return job_id

    def claim(job_id: UUID) -> ClaimedJob:
        claimed = _try(
            "PENDING → RUNNING",
            lambda: claiming.claim(connection, job_id, now, now + timedelta(minutes=1)).job,
        )
        assert claimed is not None
        return claimed

    def put_off(job: ClaimedJob) -> None:
        _try(
            "RUNNING → PENDING",
            lambda: jobs.put_off(
                connection, job, error_message=_LONGEST_ERROR, reason=_REASON, not_before=now, now=now
            ),
        )

    def hand_back(job: ClaimedJob) -> None:
        _try(
            "RUNNING → PENDING with an interruption",
            lambda: jobs.hand_back(connection, job, attempts_allowed=2, now=now),
        )

    def complete(job: ClaimedJob) -> None:
        _try("RUNNING → COMPLETED", lambda: jobs.complete(connection, job, now))

    def end(job: ClaimedJob, status: Literal[JobStatus.FAILED, JobStatus.SKIPPED]) -> None:
        _try(
            f"RUNNING → {status}",
            lambda: jobs.end(connection, job, status, _LONGEST_ERROR, _REASON, now),
        )

    # Keys that no older row has: planning leaves out users who have a job in the partition.
    daily = insert("scheduler.daily", "daily:9999-12-31", None)
    first, second = (
        insert("scheduler.backfill", f"backfill:{uuid4()}:".ljust(LONGEST_KEY, "k"), days)
        for days in (1, 3650)
    )
    put_off(claim(daily))
    hand_back(claim(daily))
    complete(claim(daily))
    end(claim(first), JobStatus.FAILED)
    end(claim(second), JobStatus.SKIPPED)
    _try("the end of the transaction", lambda: connection.execute(_FIRE_DEFERRED))


def _try(step: str, move: Callable[[], _Moved]) -> _Moved:
    """Returns what the move returns. Raises ConfigurationError if it fails or returns nothing true: a
    trigger may refuse a row silently.
    """
    reason, cause = "no row was changed", None
    try:
        moved = move()
        if moved:
            return moved
    except DBAPIError as error:
        if is_outage(error):
            raise
        reason, cause = postgres_reason(error), error
    raise ConfigurationError(
        [f"the older table sync_jobs refuses what jobs need, {step}: {reason}: {REMEDY}"]
    ) from cause
