"""Measures a worker with a full queue, and a reconcile pass over many finished runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from benchmarks import worker
from benchmarks.measure import Subject, child
from benchmarks.stores import StoreCopies, Stores
from worker_scheduler.ledger import months

_RUNS = 10
_PASSES = 5

_FINISHED = """
INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, state, jobs, batches, completed, failed,
                       skipped, slot, created_at, planned_at, enqueued_at, finished_at)
VALUES (%(run_id)s, %(key)s, 'daily', 'scheduler.daily', 'FINISHED', %(jobs)s, 0, %(jobs)s, 0, 0,
        %(at)s, %(at)s, %(at)s, %(at)s, %(at)s)
"""
_JOBS = """
INSERT INTO sync_jobs (job_id, user_id, github_login, status, triggered_by, partition_key, created_at,
                       started_at, completed_at, run_id, attempt)
SELECT (%(prefix)s || lpad(to_hex(row_number() OVER (ORDER BY id)), 8, '0'))::uuid, id, github_login,
       'COMPLETED', 'scheduler.daily', %(key)s, %(at)s, %(at)s, %(at)s, %(run_id)s, 1
FROM users
"""


@dataclass(frozen=True)
class SteadyState:
    """The speeds of one worker, and the time of one reconcile pass with `finished_jobs` jobs."""

    jobs_per_second: float
    tasks_per_second: float
    reconcile_ms: float
    finished_jobs: int


def measure(copies: StoreCopies, users: int, say: Callable[[str], None]) -> SteadyState:
    """Measures with `copies`, whose databases have `users` users."""
    with copies.fresh() as stores:
        child(stores, Subject("tick", 1000))
        jobs, tasks = worker.jobs_per_second(stores, say)
    with copies.fresh() as stores:
        _finished_runs(stores, users)
        child(stores, Subject("tick", 1000))  # a run with open jobs
        _require_open(stores, users)
        passes = [child(stores, Subject("reconcile", 0))["seconds"] for _ in range(_PASSES)]
    reconcile_ms = statistics.median(passes) * 1000
    say(f"reconcile, {_RUNS} runs of {users:,} jobs: {reconcile_ms:.1f} ms")
    return SteadyState(jobs, tasks, reconcile_ms, _RUNS * users)


def _require_open(stores: Stores, users: int) -> None:
    """Fails unless all jobs of the last run are open: otherwise reconcile has nothing to look at."""
    with psycopg.connect(stores.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM sync_jobs WHERE status = 'PENDING'").fetchone()
    if row != (users,):
        raise AssertionError(f"{users} users, {row} open jobs")


def days_before(today: datetime) -> list[datetime]:
    """Returns the times at which the finished runs were created, oldest first."""
    return [today - timedelta(days=days) for days in range(_RUNS, 0, -1)]


def _finished_runs(stores: Stores, users: int) -> None:
    engine = create_engine(make_url(stores.database_url).set(drivername="postgresql+psycopg"))
    for at in days_before(datetime.now(UTC)):
        run_id = months.new_run_id(at)
        with engine.begin() as connection:
            months.ensure(connection, run_id)
        parameters = {"run_id": run_id, "key": f"daily:{at.date()}", "jobs": users, "at": at}
        with psycopg.connect(stores.database_url) as filling:
            filling.execute(_FINISHED, parameters)
            filling.execute(_JOBS, {**parameters, "prefix": months.uuid_prefix(at)})
    engine.dispose()
    with psycopg.connect(stores.database_url, autocommit=True) as tidying:
        tidying.execute("VACUUM ANALYZE")
