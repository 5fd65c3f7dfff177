"""SQL of retries: final jobs of a run become PENDING again, in steps that go by the users' ids.

A step looks at a bounded number of jobs, whether or not they match. So neither a statement nor a lock grows
with the run, and a retry that was left is continued from its cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.events import JobEvent, noted
from worker_scheduler.ledger.run_ends import KEPT


class Wanted(StrEnum):
    """Which final jobs are tried again."""

    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Retry:
    """Which jobs of a run somebody wants tried again. error_like: a part of the error's text. only_users:
    None means any user. jobs_left: how many at most; None: all. asked_at: jobs that ended later stay.
    """

    request_id: UUID
    run_id: UUID
    asked_at: datetime
    wanted: Wanted
    error_like: str | None
    only_users: Sequence[UUID] | None
    jobs_left: int | None


_MATCHES = """
    CASE CAST(:wanted AS text)
        WHEN 'failed' THEN j.status || '' = 'FAILED'
        WHEN 'skipped' THEN j.status || '' = 'SKIPPED' AND j.cancelled_at IS NULL
        ELSE j.status || '' = 'SKIPPED' AND j.cancelled_at IS NOT NULL END
    AND j.completed_at <= :asked_at
    AND (CAST(:error_like AS text) IS NULL
         OR position(lower(CAST(:error_like AS text)) IN lower(j.error_message)) > 0)
    AND (CAST(:only_users AS uuid[]) IS NULL OR j.user_id = ANY(CAST(:only_users AS uuid[])))
"""

_COUNT = text(
    f"""
    SELECT count(*) FROM (SELECT FROM sync_jobs j WHERE j.run_id = :run_id AND {_MATCHES}
                          LIMIT :at_most) matching
    """
)

_OPEN_RUN = text(
    f"""
    UPDATE sync_runs r SET {KEPT}, state = 'ENQUEUED', finished_at = NULL, completed = NULL, failed = NULL,
        skipped = NULL, cancelled = NULL
    WHERE run_id = :run_id AND state = 'FINISHED' AND pruned_at IS NULL
    """
)

_UNCANCEL = text(
    """
    UPDATE sync_runs SET cancelled_at = NULL, cancelled_by = NULL, cancel_reason = NULL
    WHERE run_id = :run_id AND cancelled_at IS NOT NULL AND pruned_at IS NULL
    """
)

_ASK = text(
    """
    INSERT INTO sync_retries (request_id, run_id, asked_at, wanted, error_like, only_users, jobs_left)
    VALUES (:request_id, :run_id, :asked_at, :wanted, :error_like, CAST(:only_users AS uuid[]), :jobs_left)
    """
)

_OPEN = text("SELECT request_id FROM sync_retries WHERE ended_at IS NULL ORDER BY asked_at")

_LOCK = text(
    """
    SELECT t.request_id, t.run_id, t.asked_at, t.wanted, t.error_like, t.only_users, t.jobs_left,
        t.walked_through,
        r.cancelled_at IS NULL AND r.pruned_at IS NULL AND r.state <> 'FINISHED' AS goes_on
    FROM sync_retries t JOIN sync_runs r USING (run_id)
    WHERE t.request_id = :request_id AND t.ended_at IS NULL FOR UPDATE OF t SKIP LOCKED
    """
)

_PAGE = text(
    """
    SELECT max(CAST(user_id AS text)) AS last, count(*) AS seen
    FROM (SELECT user_id FROM sync_jobs
          WHERE run_id = :run_id
              AND (CAST(:walked_through AS uuid) IS NULL OR user_id > CAST(:walked_through AS uuid))
          ORDER BY user_id LIMIT :limit) page
    """
)

# A fresh budget beside an attempt that never goes back.
_RETRY = text(
    noted(
        f"""
        WITH found AS MATERIALIZED (
            SELECT j.job_id FROM sync_jobs j
            WHERE j.run_id = :run_id AND j.user_id <= CAST(:last AS uuid)
                AND (CAST(:walked_through AS uuid) IS NULL OR j.user_id > CAST(:walked_through AS uuid))
                AND {_MATCHES}
            ORDER BY j.user_id LIMIT :at_most FOR UPDATE OF j
        )
        UPDATE sync_jobs j SET status = 'PENDING', not_before = :now, leased_until = NULL,
            completed_at = NULL, error_message = NULL, reason_class = NULL, reason_fingerprint = NULL,
            cancelled_at = NULL, interruptions = 0, attempts_allowed = j.attempt + :max_attempts
        FROM found WHERE j.job_id = found.job_id AND j.run_id = :run_id AND {_MATCHES}
        """,
        JobEvent.RETRIED,
    )
)

_ADVANCE = text(
    """
    UPDATE sync_retries SET walked_through = coalesce(CAST(:last AS uuid), walked_through),
        jobs = jobs + :moved, jobs_left = jobs_left - :moved,
        ended_at = CASE WHEN :ended THEN CAST(:now AS timestamptz) END
    WHERE request_id = :request_id AND ended_at IS NULL
    """
)


@dataclass(frozen=True)
class Step:
    """What a step did. ended: nothing is left, or another process is doing it."""

    jobs: int
    ended: bool


def count(connection: Connection, retry: Retry, at_most: int) -> int:
    """How many jobs match now; it stops counting at `at_most`."""
    return int(connection.execute(_COUNT, {**_parameters(retry), "at_most": at_most}).scalar_one())


def open_run(connection: Connection, run_id: UUID, wanted: Wanted) -> None:
    """Opens a FINISHED run again. To retry cancelled jobs ends its cancel."""
    if wanted is Wanted.CANCELLED:
        connection.execute(_UNCANCEL, {"run_id": run_id})
    connection.execute(_OPEN_RUN, {"run_id": run_id})


def ask(connection: Connection, retry: Retry) -> None:
    """Stores a retry, in the transaction that opens its run."""
    connection.execute(_ASK, _parameters(retry))


def unfinished(connection: Connection) -> list[UUID]:
    """The retries that have not walked through their run, oldest first, by the id of their request."""
    return list(connection.execute(_OPEN).scalars())


def step(connection: Connection, request_id: UUID, *, limit: int, max_attempts: int, now: datetime) -> Step:
    """Looks at the next `limit` jobs of a retry's run, and moves those that match FAILED or SKIPPED →
    PENDING, due now; within a transaction.
    """
    row = connection.execute(_LOCK, {"request_id": request_id}).one_or_none()
    if row is None:
        return Step(jobs=0, ended=True)
    given = {
        "request_id": request_id,
        "run_id": row.run_id,
        "asked_at": row.asked_at,
        "wanted": row.wanted,
        "error_like": row.error_like,
        "only_users": None if row.only_users is None else [str(user) for user in row.only_users],
        "walked_through": row.walked_through,
        "now": now,
    }
    page = connection.execute(_PAGE, {**given, "limit": limit}).one()
    moved = 0
    if page.seen and row.goes_on:
        at_most = limit if row.jobs_left is None else min(limit, row.jobs_left)
        more = {"last": page.last, "at_most": at_most, "max_attempts": max_attempts}
        moved = connection.execute(_RETRY, {**given, **more}).rowcount
    all_moved = row.jobs_left is not None and moved >= row.jobs_left
    ended = page.seen < limit or all_moved or not row.goes_on
    connection.execute(_ADVANCE, {**given, "last": page.last, "moved": moved, "ended": ended})
    return Step(moved, ended)


def _parameters(retry: Retry) -> dict[str, object]:
    return {
        **vars(retry),
        "wanted": retry.wanted.value,
        "only_users": None if retry.only_users is None else [str(user) for user in retry.only_users],
    }
