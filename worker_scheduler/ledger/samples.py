"""SQL of samples: counts of open runs and depths of queues, once a minute, for rates and forecasts.

All samples of one minute have the same time. Nothing decides by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from worker_scheduler.ledger import passes
from worker_scheduler.ledger.tables import Kind

_KEPT = timedelta(days=14)
_RATE_OF = timedelta(hours=24)
"""So that a rate is known all day from the run of the night."""

_PASS = "samples"

# Of final jobs, only those that did not complete are counted, and each count has a small index to itself.
# With statistics older than the runs, Postgres would take any index that begins with the run, or none. So
# the counts ask for the order of their index, and `status || ''` hides the column from the others. Jobs
# that FAILED have a class of Python or one of our other words (docs/states.md).
_IN_INDEX_ORDER = text("SET LOCAL enable_sort = off")
_BY_INDEX = text("SET LOCAL enable_seqscan = off")
_ALONE = text("SET LOCAL max_parallel_workers_per_gather = 0")

_NOTE_RUNS = text(
    """
    WITH at_work AS MATERIALIZED (
        SELECT run_id, count(*) AS jobs
        FROM (SELECT run_id FROM sync_jobs
              WHERE leased_until > '-infinity' AND status || '' = 'RUNNING'
              ORDER BY leased_until OFFSET 0) leased
        GROUP BY run_id
    )
    INSERT INTO sync_run_samples (run_id, sampled_at, jobs, pending, running, failed, skipped, cancelled)
    SELECT r.run_id, :now, r.jobs, greatest(unfinished.jobs - coalesce(at_work.jobs, 0), 0),
        coalesce(at_work.jobs, 0), ended.failed, ended.skipped, ended.cancelled
    FROM sync_runs r
        LEFT JOIN at_work USING (run_id)
        CROSS JOIN LATERAL (
            SELECT count(*) AS jobs
            FROM (SELECT FROM sync_jobs j WHERE j.run_id = r.run_id AND j.status IN ('PENDING', 'RUNNING')
                  ORDER BY j.job_id OFFSET 0) o
        ) unfinished
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE reason_class NOT IN ('skipped', 'revoked', 'cancelled'))
                       AS failed,
                   count(*) FILTER (WHERE reason_class IN ('skipped', 'revoked', 'cancelled')) AS skipped,
                   count(*) FILTER (WHERE reason_class = 'cancelled') AS cancelled
            FROM (SELECT j.reason_class FROM sync_jobs j
                  WHERE j.run_id = r.run_id AND j.reason_class IS NOT NULL
                  ORDER BY j.reason_class OFFSET 0) e
        ) ended
    WHERE r.state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED')
    ON CONFLICT DO NOTHING
    """
)

_NOTE_QUEUE = text(
    """
    INSERT INTO sync_queue_samples (queue, sampled_at, messages) VALUES (:queue, :now, :messages)
    ON CONFLICT DO NOTHING
    """
)

_DELETE_RUNS, _DELETE_QUEUES = (
    text(
        f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table} WHERE sampled_at <= :cutoff ORDER BY sampled_at LIMIT :limit))
            AND sampled_at <= :cutoff
        """
    )
    for table in ("sync_run_samples", "sync_queue_samples")
)

# The time between two samples counts if a run had jobs waiting at both, and somebody worked on it: then the
# workers had all they could do. Cancelled jobs were not done, and a retry makes a count smaller.
_RATE = text(
    """
    WITH steps AS (
        SELECT s.sampled_at, s.pending, s.running, s.jobs - s.pending - s.running - s.cancelled AS done,
            lag(s.sampled_at) OVER earlier AS sampled_before,
            lag(s.pending) OVER earlier AS pending_before,
            lag(s.running) OVER earlier AS running_before,
            lag(s.jobs - s.pending - s.running - s.cancelled) OVER earlier AS done_before
        FROM sync_run_samples s JOIN sync_runs r USING (run_id)
        WHERE r.kind = :kind AND s.sampled_at > :since AND s.sampled_at <= :now
        WINDOW earlier AS (PARTITION BY s.run_id ORDER BY s.sampled_at)
    ), intervals AS (
        SELECT extract(epoch FROM sampled_at - sampled_before) AS seconds,
            sum(greatest(done - done_before, 0)) AS done
        FROM steps WHERE sampled_before IS NOT NULL
        GROUP BY sampled_before, sampled_at
        HAVING bool_or(pending > 0 AND pending_before > 0
                       AND (running > 0 OR running_before > 0 OR done > done_before))
    )
    SELECT CAST(sum(done) / sum(seconds) AS double precision) FROM intervals
    """
)


def begin(connection: Connection, now: datetime) -> bool:
    """Notes that somebody takes the samples of this minute; False if another process has done so."""
    into_the_minute = timedelta(seconds=now.second, microseconds=now.microsecond + 1)
    return passes.begin(connection, _PASS, now, after_begin=into_the_minute, longest_rest=timedelta(0))


def note_runs(connection: Connection, now: datetime) -> None:
    """Stores the counts of every run that is not over, in a transaction.

    A job that ended under an earlier version has no reason; it counts as completed.
    """
    for setting in (_IN_INDEX_ORDER, _BY_INDEX, _ALONE):
        connection.execute(setting)
    connection.execute(_NOTE_RUNS, {"now": now})


def note_queues(connection: Connection, depths: Mapping[str, int], now: datetime) -> None:
    """Stores the depths of queues."""
    for queue, messages in depths.items():
        connection.execute(_NOTE_QUEUE, {"queue": queue, "now": now, "messages": messages})


def delete_old_runs(connection: Connection, *, now: datetime, limit: int) -> int:
    """Deletes at most `limit` samples of runs that are older than 14 days; returns how many."""
    return connection.execute(_DELETE_RUNS, {"cutoff": now - _KEPT, "limit": limit}).rowcount


def delete_old_queues(connection: Connection, *, now: datetime, limit: int) -> int:
    """Deletes at most `limit` samples of queues that are older than 14 days; returns how many."""
    return connection.execute(_DELETE_QUEUES, {"cutoff": now - _KEPT, "limit": limit}).rowcount


def jobs_per_second(connection: Connection, kind: Kind, now: datetime) -> float | None:
    """How many jobs of this kind the workers ended per second in the last 24 hours, while jobs waited.

    None if that is not known: they ended none, or no run had jobs waiting at two samples in a row.
    """
    parameters = {"kind": kind.value, "since": now - _RATE_OF, "now": now}
    rate: float | None = connection.execute(_RATE, parameters).scalar_one()
    return rate or None
