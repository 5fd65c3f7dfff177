"""What is measured beside ticks: a worker on a full queue, and reconcile over runs that have ended."""

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
from benchmarks.sites import Site, Sites
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
class Standing:
    """reconcile_ms: of a pass, with so many jobs that are done. The others: of one worker."""

    jobs_per_second: float
    tasks_per_second: float
    reconcile_ms: float
    finished_jobs: int


def measure(sites: Sites, users: int, say: Callable[[str], None]) -> Standing:
    """sites: of so many users."""
    with sites.fresh() as site:
        child(site, Subject("tick", 1000))
        jobs, tasks = worker.jobs_a_second(site, say)
    with sites.fresh() as site:
        _finished_runs(site, users)
        child(site, Subject("tick", 1000))  # and one that is under way
        _require_open(site, users)
        passes = [child(site, Subject("reconcile", 0))["seconds"] for _ in range(_PASSES)]
    reconcile_ms = statistics.median(passes) * 1000
    say(f"reconcile, {_RUNS} runs of {users:,} jobs: {reconcile_ms:.1f} ms")
    return Standing(jobs, tasks, reconcile_ms, _RUNS * users)


def _require_open(site: Site, users: int) -> None:
    """Reconcile over runs that have all ended would have nothing to look through."""
    with psycopg.connect(site.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM sync_jobs WHERE status = 'PENDING'").fetchone()
    if row != (users,):
        raise AssertionError(f"{users} users, {row} open jobs")


def days_before(today: datetime) -> list[datetime]:
    """When the runs that have ended were made, oldest first."""
    return [today - timedelta(days=days) for days in range(_RUNS, 0, -1)]


def _finished_runs(site: Site, users: int) -> None:
    engine = create_engine(make_url(site.database_url).set(drivername="postgresql+psycopg"))
    for at in days_before(datetime.now(UTC)):
        run_id = months.new_run_id(at)
        with engine.begin() as connection:
            months.ensure(connection, run_id)
        parameters = {"run_id": run_id, "key": f"daily:{at.date()}", "jobs": users, "at": at}
        with psycopg.connect(site.database_url) as filling:
            filling.execute(_FINISHED, parameters)
            filling.execute(_JOBS, {**parameters, "prefix": months.uuid_prefix(at)})
    engine.dispose()
    with psycopg.connect(site.database_url, autocommit=True) as tidying:
        tidying.execute("VACUUM ANALYZE")
