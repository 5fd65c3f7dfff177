"""Tries on an older table what a scheduler does with it, and takes it all back; it mends nothing.

What may stand in the way, a CHECK, a domain, a trigger, a unique index over states, Postgres knows
best; so it is asked now, and not by the first run in the night.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

import structlog
from psycopg.errors import ForeignKeyViolation
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.database import is_outage, reason_of
from worker_scheduler.ledger.jobs import ClaimedJob
from worker_scheduler.ledger.months import new_run_id
from worker_scheduler.ledger.tables import JobStatus

log = structlog.get_logger(__name__)

REMEDY = "drop what stands in the way, or rename the older table sync_jobs and let migrate make a new one"
_LONGEST_KEY = 200
_LONGEST_ERROR = "x" * 500
_Moved = TypeVar("_Moved")

_NOW = text("SELECT CURRENT_TIMESTAMP")
# Somebody real, since the column may refer to a table of users.
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
    """Three jobs of one user, through every state; none of them stays. Raises ConfigurationError."""
    user = connection.execute(_A_USER).one_or_none()
    savepoint = connection.begin_nested()
    try:
        _through_every_state(connection, *(user or (uuid4(), "octocat")))
    except ConfigurationError as error:
        cause = getattr(error.__cause__, "orig", None)
        if user is not None or not isinstance(cause, ForeignKeyViolation):
            raise
        log.info("sync_jobs adopted untried: it is empty and refers to other tables")
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
            "PENDING → RUNNING", lambda: jobs.claim(connection, job_id, now, now + timedelta(minutes=1))
        )
        assert claimed is not None
        return claimed

    def put_off(job: ClaimedJob) -> None:
        _try(
            "RUNNING → PENDING",
            lambda: jobs.put_off(connection, job, error_message=_LONGEST_ERROR, not_before=now),
        )

    def finish(job: ClaimedJob, status: JobStatus, error_message: str | None) -> None:
        _try(f"RUNNING → {status}", lambda: jobs.finish(connection, job, status, error_message, now))

    # Under keys that no older row has, since planning leaves out who has one.
    daily = insert("scheduler.daily", "daily:9999-12-31", None)
    first, second = (
        insert("scheduler.backfill", f"backfill:{uuid4()}:".ljust(_LONGEST_KEY, "k"), days)
        for days in (1, 3650)
    )
    put_off(claim(daily))
    finish(claim(daily), JobStatus.COMPLETED, None)
    finish(claim(first), JobStatus.FAILED, _LONGEST_ERROR)
    finish(claim(second), JobStatus.SKIPPED, _LONGEST_ERROR)
    _try("the end of the transaction", lambda: connection.execute(_FIRE_DEFERRED))


def _try(step: str, move: Callable[[], _Moved]) -> _Moved:
    """What the move returns; false counts as refused, since a trigger may refuse without a word."""
    reason, cause = "no row was changed", None
    try:
        moved = move()
        if moved:
            return moved
    except DBAPIError as error:
        if is_outage(error):
            raise
        reason, cause = reason_of(error), error
    raise ConfigurationError(
        [f"the older table sync_jobs refuses what jobs need, {step}: {reason}: {REMEDY}"]
    ) from cause
