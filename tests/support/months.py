"""Runs of a chosen day, their end, and the month partitions that their jobs are in."""

from datetime import UTC, datetime, timedelta

from tests.support import attempts
from tests.support.contexts import NOON, HandedClock
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.maintenance import reconciler

LEASE = timedelta(seconds=45)
MARCH_ENDS = datetime(2026, 4, 1, tzinfo=UTC)


def run_day(context: TickContext, clock: HandedClock, at: datetime) -> Report:
    """Runs the day of `at`, with the clock set to it."""
    clock.now = at
    return tick.daily(context, DailyOptions(date=at.date()))


def finish_all(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """Completes every job that can be claimed, and finishes the runs without an open job."""
    for job in ledger.jobs():
        with context.database.autocommit() as connection:
            claimed = attempts.claim(connection, job["job_id"], clock(), clock() + LEASE)
            if claimed is not None:
                assert attempts.finish(connection, claimed, JobStatus.COMPLETED, None, clock())
    reconciler.finished_runs(context)


def places(ledger: Ledger) -> dict[str, int]:
    """How many jobs are in each partition."""
    rows = ledger.rows("SELECT tableoid::regclass::text AS place, count(*) AS n FROM sync_jobs GROUP BY 1")
    return {row["place"]: row["n"] for row in rows}


def add_runs_in_no_month(ledger: Ledger) -> None:
    """Adds a finished run and one in progress, whose random ids are in no month, and 6 users."""
    make_users(ledger.url, 6)
    ledger.execute(
        "INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, state, jobs, batches,"
        " created_at, finished_at, completed)"
        " SELECT gen_random_uuid(), key, 'daily', 'scheduler.daily', state, 3, 1, at, finished, 3"
        f" FROM (VALUES ('daily:2026-03-12', 'FINISHED', '{MARCH_ENDS}'::timestamptz, '{MARCH_ENDS}'),"
        f" ('daily:2026-11-23', 'ENQUEUED', '{NOON}'::timestamptz, NULL::timestamptz))"
        " AS r(key, state, at, finished)",
        "INSERT INTO sync_jobs (job_id, user_id, github_login, status, triggered_by, partition_key,"
        " created_at, run_id)"
        " SELECT gen_random_uuid(), u.id, github_login,"
        " CASE state WHEN 'FINISHED' THEN 'COMPLETED' ELSE 'PENDING' END, triggered_by, partition_key,"
        " created_at, run_id FROM sync_runs, (SELECT * FROM users ORDER BY id LIMIT 3) u",
        "INSERT INTO sync_batches (run_id, number, first_user_id, last_user_id, first_job_id, last_job_id,"
        " jobs, group_id, enqueued_at)"
        " SELECT run_id, 0, min(user_id::text)::uuid, max(user_id::text)::uuid, min(job_id::text)::uuid,"
        " max(job_id::text)::uuid, 3, gen_random_uuid(), now() FROM sync_jobs GROUP BY run_id",
    )
