"""Reconcile on a ledger of a million finished jobs: each rule in under 100 ms."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from statistics import median
from time import perf_counter

import pytest
from sqlalchemy import TextClause, text

from tests.support.contexts import NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import dead_workers, rescue
from worker_scheduler.maintenance import reconciler

pytestmark = pytest.mark.slow

RUNS = 100
JOBS_PER_RUN = 10_000
LIMIT_SECONDS = 0.1

# Laid out as the planner does it: a run's rows are next to each other, with rising job ids.
A_MILLION = (
    "CREATE TEMP TABLE days AS SELECT n, gen_random_uuid() AS run_id,"
    f" '{NOON}'::timestamptz - (n + 1) * interval '1 day' AS at FROM generate_series(0, {RUNS - 1}) n",
    "INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, state, jobs, batches, completed,"
    " failed, skipped, slot, created_at, planned_at, enqueued_at, finished_at)"
    " SELECT run_id, 'daily:' || at::date, 'daily', 'scheduler.daily', 'FINISHED',"
    f" {JOBS_PER_RUN}, {JOBS_PER_RUN // 200}, {JOBS_PER_RUN}, 0, 0, at, at, at, at, at FROM days",
    "INSERT INTO sync_jobs (job_id, user_id, github_login, status, triggered_by, partition_key,"
    " created_at, started_at, completed_at, run_id, attempt)"
    " SELECT lpad(to_hex(n * 65536 + j), 32, '0')::uuid, lpad(to_hex(j), 32, '0')::uuid, 'user-' || j,"
    " 'COMPLETED', 'scheduler.daily', 'daily:' || at::date, at, at, at, run_id, 1"
    f" FROM (SELECT * FROM days ORDER BY n DESC) d, generate_series(1, {JOBS_PER_RUN}) j",
    "INSERT INTO sync_batches (run_id, number, first_user_id, last_user_id, first_job_id, last_job_id,"
    " jobs, group_id, enqueued_at, broker_epoch)"
    " SELECT run_id, b, lpad(to_hex(b * 200 + 1), 32, '0')::uuid,"
    " lpad(to_hex(b * 200 + 200), 32, '0')::uuid,"
    " lpad(to_hex(n * 65536 + b * 200 + 1), 32, '0')::uuid,"
    " lpad(to_hex(n * 65536 + b * 200 + 200), 32, '0')::uuid, 200, gen_random_uuid(), at,"
    f" gen_random_uuid() FROM days, generate_series(0, {JOBS_PER_RUN // 200 - 1}) b",
    f"UPDATE sync_origin SET since = '{NOON - timedelta(days=RUNS)}'",
)


@pytest.fixture
def context(deployed: None) -> Iterator[TickContext]:
    with context_at(HandedClock(), daily_tick_cron="0 12 * * *", max_enqueued_jobs=10**6) as context:
        yield context


def seconds_by_rule(context: TickContext) -> dict[str, float]:
    """The median time of five calls of each rule."""
    medians = {}
    for rule in reconciler.RULES:
        taken = []
        for _ in range(5):
            began = perf_counter()
            rule(context)
            taken.append(perf_counter() - began)
        medians[rule.__name__] = median(taken)
    return medians


@pytest.mark.timeout(240)
def test_each_rule_takes_under_100_ms_on_a_million_finished_jobs(
    context: TickContext, ledger: Ledger
) -> None:
    ledger.execute(*A_MILLION)
    assert ledger.count() == RUNS * JOBS_PER_RUN
    # Today's run is enqueued and no worker runs, so the rules have open jobs to look at.
    make_users(ledger.url, JOBS_PER_RUN)
    tick.daily(context, DailyOptions(date=NOON.date()))
    medians = seconds_by_rule(context)
    print({name: f"{seconds * 1000:.1f} ms" for name, seconds in medians.items()})
    assert {name: seconds for name, seconds in medians.items() if seconds >= LIMIT_SECONDS} == {}
    # The end of the run: 10,000 jobs are counted.
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED' WHERE status = 'PENDING'")
    began = perf_counter()
    assert reconciler.finished_runs(context) == 1
    assert perf_counter() - began < LIMIT_SECONDS


@pytest.mark.parametrize("cron", ["0 2 * * *", "0 * * * *", "*/15 * * * *", "* * * * *"])
def test_a_year_of_days_is_checked_in_under_100_ms_however_often_the_cron_fires(
    cron: str, context: TickContext, ledger: Ledger
) -> None:
    often = {"daily_tick_cron": cron, "scheduler_timezone": "America/New_York"}
    context = replace(context, settings=context.settings.model_copy(update=often))
    make_users(ledger.url, 1)
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON - timedelta(days=400)}'")
    assert reconciler.missed_slots(context) == 1
    assert ledger.value("SELECT count(*) FROM sync_runs") >= 365
    taken = []
    for _ in range(5):
        began = perf_counter()
        assert reconciler.missed_slots(context) == 0
        taken.append(perf_counter() - began)
    assert median(taken) < LIMIT_SECONDS


@pytest.mark.parametrize("statement", [dead_workers._EXPIRED, rescue._TAKE_DUE])
def test_what_is_left_is_found_by_its_own_index(
    context: TickContext, ledger: Ledger, statement: TextClause
) -> None:
    """Not by the index of open jobs, which looks empty while statistics are older than the run."""
    make_users(ledger.url, 1000)
    tick.daily(context, DailyOptions(date=NOON.date() - timedelta(days=1)))
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    ledger.execute("ANALYZE sync_jobs")
    tick.daily(context, DailyOptions(date=NOON.date()))
    parameters = {"now": NOON, "leased_until": NOON, "limit": 1000, "kind": "daily"}
    wanted = {name: parameters[name] for name in statement.compile().params}
    with context.database.autocommit() as connection:
        plan = "\n".join(connection.execute(text(f"EXPLAIN {statement.text}"), wanted).scalars())
    assert "run_id_job_id" not in plan
