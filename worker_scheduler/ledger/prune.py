"""SQL of pruning: drops months whose runs are over, deletes what has no month, all in short steps.

A run's row stays, with its counts: it says that its day has run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.months import month_of, partition_name, run_ids_of

_PARTITION = re.compile(r"sync_jobs_(\d{4})_(\d{2})")

_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'sync_jobs'::regclass ORDER BY c.relname"
)

# Dropping waits for everybody who uses the table, and others wait behind it: so it waits but shortly.
_SHORT_WAIT = text("SET LOCAL lock_timeout = '1s'")

# One prune at a time at a month; any number of our own. It ends with the transaction, so it is safe behind
# PgBouncer.
_ALONE = text("SELECT pg_advisory_xact_lock(x'7761766501'::bigint)")

_RUNS_OF = text(
    """
    SELECT partition_key, state, jobs, finished_at FROM sync_runs
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
    SELECT run_id, partition_key, jobs FROM sync_runs r
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


@dataclass(frozen=True)
class MonthRuns:
    """What a month holds. unfinished: a run of it that is not over, or not for long enough."""

    runs: int
    jobs: int
    unfinished: str | None


@dataclass(frozen=True)
class MonthlessRun:
    """A run that is over, whose jobs are in no month."""

    run_id: UUID
    partition_key: str
    jobs: int


def partitions(connection: Connection) -> list[date]:
    """The months that have a partition, oldest first."""
    names = connection.execute(_PARTITIONS).scalars()
    found = [_PARTITION.fullmatch(name) for name in names]
    return [date(int(match[1]), int(match[2]), 1) for match in found if match]


def lock_runs(connection: Connection, month: date, cutoff: datetime) -> MonthRuns | None:
    """The month's runs, which nobody can open again before the transaction ends; None where another prune
    has dropped the month meanwhile.
    """
    connection.execute(_SHORT_WAIT)
    connection.execute(_ALONE)
    if month not in partitions(connection):
        return None
    rows = connection.execute(_RUNS_OF, _range(month)).all()
    unfinished = [
        row.partition_key
        for row in rows
        if row.state != "MISSED" and (row.state != "FINISHED" or row.finished_at > cutoff)
    ]
    return MonthRuns(len(rows), sum(row.jobs for row in rows), next(iter(unfinished), None))


def drop(connection: Connection, month: date, now: datetime) -> None:
    """FINISHED → pruned, and the month's table goes, in the caller's transaction; after `lock_runs`."""
    connection.execute(_MARK_MONTH, {**_range(month), "now": now})
    connection.execute(text(f"DROP TABLE {partition_name(month)}"))


def monthless_runs(connection: Connection, cutoff: datetime) -> Sequence[MonthlessRun]:
    """Runs that ended before `cutoff`, still have rows, and are of no month that has a partition."""
    # Months first: the runs of one that is dropped by another prune in between are pruned by then.
    divided = set(partitions(connection))
    rows = connection.execute(_MONTHLESS_RUNS, {"cutoff": cutoff})
    return [MonthlessRun(**row._mapping) for row in rows if month_of(row.run_id) not in divided]


def mark_run(connection: Connection, run_id: UUID, cutoff: datetime, now: datetime) -> bool:
    """FINISHED → pruned; False where it was opened meanwhile."""
    parameters = {"run_id": run_id, "cutoff": cutoff, "now": now}
    return connection.execute(_MARK_RUN, parameters).rowcount == 1


def delete_jobs(connection: Connection, *, run_id: UUID, limit: int) -> int:
    """Deletes jobs of a pruned run; how many, `limit` at most."""
    return connection.execute(_DELETE_JOBS, {"run_id": run_id, "limit": limit}).rowcount


def delete_batches(connection: Connection, *, limit: int) -> int:
    """Deletes batches of pruned runs; how many, `limit` at most."""
    return connection.execute(_DELETE_BATCHES, {"limit": limit}).rowcount


def _range(month: date) -> dict[str, object]:
    first, following = run_ids_of(month)
    return {"first_run_id": first, "next_run_id": following}
