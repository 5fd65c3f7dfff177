"""SQL of pruning: drops months whose runs are over and deletes other jobs row by row, in short steps.

The row of a run stays, with its counts: it says that its day has run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger import advisory_locks
from worker_scheduler.ledger.months import month_of, partition_name, run_ids_of

_PARTITION = re.compile(r"sync_jobs_(\d{4})_(\d{2})")

_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'sync_jobs'::regclass ORDER BY c.relname"
)

# DROP TABLE waits for everyone who uses the table, and others queue behind it: so it waits for 1 s at most.
_SHORT_WAIT = text("SET LOCAL lock_timeout = '1s'")

_RUNS_OF = text(
    """
    SELECT partition_key, state, jobs AS job_count, finished_at FROM sync_runs
    WHERE run_id >= :first_run_id AND run_id < :next_run_id ORDER BY partition_key FOR UPDATE
    """
)

_MARK_MONTH = text(
    """
    UPDATE sync_runs SET pruned_at = :now
    WHERE run_id >= :first_run_id AND run_id < :next_run_id AND state = 'FINISHED'
        AND pruned_at IS NULL
    """
)

_MONTHLESS_RUNS = text(
    """
    SELECT run_id, partition_key, jobs AS job_count FROM sync_runs r
    WHERE state = 'FINISHED' AND finished_at <= :cutoff
        AND (pruned_at IS NULL OR EXISTS (SELECT FROM sync_jobs j WHERE j.run_id = r.run_id))
    ORDER BY created_at
    """
)

_MARK_RUN = text(
    """
    UPDATE sync_runs SET pruned_at = coalesce(pruned_at, :now)
    WHERE run_id = :run_id AND state = 'FINISHED' AND finished_at <= :cutoff
    """
)

_DELETE_JOBS = text(
    """
    DELETE FROM sync_jobs WHERE run_id = :run_id AND ctid = ANY(ARRAY(
        SELECT ctid FROM sync_jobs WHERE run_id = :run_id LIMIT :limit))
    """
)

_DELETE_BATCHES = text(
    """
    DELETE FROM sync_batches WHERE ctid = ANY(ARRAY(
        SELECT b.ctid FROM sync_batches b JOIN sync_runs r USING (run_id)
        WHERE r.pruned_at IS NOT NULL LIMIT :limit))
    """
)

_SELECTING_RUNS = text(
    """
    SELECT run_id FROM sync_runs r WHERE pruned_at IS NOT NULL
        AND EXISTS (SELECT FROM sync_selected_users s WHERE s.run_id = r.run_id)
    """
)

_DELETE_SELECTED_USERS = text(
    """
    DELETE FROM sync_selected_users WHERE run_id = :run_id AND user_id = ANY(ARRAY(
        SELECT user_id FROM sync_selected_users WHERE run_id = :run_id ORDER BY user_id LIMIT :limit))
    """
)

_DELETE_TASKS = text(
    """
    DELETE FROM sync_tasks WHERE task_id = ANY(ARRAY(
        SELECT task_id FROM sync_tasks WHERE created_at <= :cutoff LIMIT :limit))
        AND created_at <= :cutoff
    """
)


@dataclass(frozen=True)
class MonthRuns:
    """What a month contains. unfinished: the key of a run that has not ended, or ended too recently."""

    runs: int
    job_count: int
    unfinished: str | None


@dataclass(frozen=True)
class MonthlessRun:
    """A finished run whose jobs are in no month partition."""

    run_id: UUID
    partition_key: str
    job_count: int


def partitions(connection: Connection) -> list[date]:
    """The months that have a partition, oldest first."""
    names = connection.execute(_PARTITIONS).scalars()
    found = [_PARTITION.fullmatch(name) for name in names]
    return [date(int(match[1]), int(match[2]), 1) for match in found if match]


def lock_runs(connection: Connection, month: date, cutoff: datetime) -> MonthRuns | None:
    """Locks the month's runs, so that no tick opens one before the transaction ends, and counts them; None
    if another prune has dropped the month in the meantime.
    """
    connection.execute(_SHORT_WAIT)
    advisory_locks.hold(connection, advisory_locks.PRUNE)
    if month not in partitions(connection):
        return None
    rows = connection.execute(_RUNS_OF, _range(month)).all()
    unfinished = [
        row.partition_key
        for row in rows
        if row.state != "MISSED" and (row.state != "FINISHED" or row.finished_at > cutoff)
    ]
    return MonthRuns(len(rows), sum(row.job_count for row in rows), next(iter(unfinished), None))


def drop(connection: Connection, month: date, now: datetime) -> None:
    """Marks the month's FINISHED runs as pruned and drops its table, in the transaction of `lock_runs`."""
    connection.execute(_MARK_MONTH, {**_range(month), "now": now})
    connection.execute(text(f"DROP TABLE {partition_name(month)}"))


def monthless_runs(connection: Connection, cutoff: datetime) -> Sequence[MonthlessRun]:
    """Runs in no month partition that finished before `cutoff` and are not, or only partly, pruned."""
    # The months are read first: if another prune drops one in between, its runs are pruned by then.
    divided = set(partitions(connection))
    rows = connection.execute(_MONTHLESS_RUNS, {"cutoff": cutoff})
    return [MonthlessRun(**row._mapping) for row in rows if month_of(row.run_id) not in divided]


def mark_run(connection: Connection, run_id: UUID, cutoff: datetime, now: datetime) -> bool:
    """Marks a FINISHED run as pruned; False if it was opened again in the meantime."""
    parameters = {"run_id": run_id, "cutoff": cutoff, "now": now}
    return connection.execute(_MARK_RUN, parameters).rowcount == 1


def delete_jobs(connection: Connection, *, run_id: UUID, limit: int) -> int:
    """Deletes at most `limit` jobs of a pruned run; returns how many."""
    return connection.execute(_DELETE_JOBS, {"run_id": run_id, "limit": limit}).rowcount


def delete_batches(connection: Connection, *, limit: int) -> int:
    """Deletes at most `limit` batches of pruned runs; returns how many."""
    return connection.execute(_DELETE_BATCHES, {"limit": limit}).rowcount


def pruned_runs_with_users(connection: Connection) -> Sequence[UUID]:
    """The pruned runs whose chosen users are still stored."""
    return connection.execute(_SELECTING_RUNS).scalars().all()


def delete_selected_users(connection: Connection, *, run_id: UUID, limit: int) -> int:
    """Deletes at most `limit` chosen users of a pruned run; returns how many."""
    return connection.execute(_DELETE_SELECTED_USERS, {"run_id": run_id, "limit": limit}).rowcount


def delete_tasks(connection: Connection, *, cutoff: datetime, limit: int) -> int:
    """Deletes at most `limit` tasks that were first executed before `cutoff`; returns how many."""
    return connection.execute(_DELETE_TASKS, {"cutoff": cutoff, "limit": limit}).rowcount


def _range(month: date) -> dict[str, object]:
    first, following = run_ids_of(month)
    return {"first_run_id": first, "next_run_id": following}
