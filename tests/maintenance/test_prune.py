"""Prune: months whose time is over are dropped; the default partition is pruned row by row."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from threading import Event, Timer
from uuid import uuid4

import psycopg
import pytest
from freezegun import freeze_time

from tests.support.command_line import Outcome
from tests.support.contexts import INSTANT, NOON, HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.months import MARCH_ENDS, add_runs_in_no_month, finish_all, places, run_day
from tests.support.older_scheduler import OLDER_SCHEDULERS
from tests.support.users import make_users, user_id
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import Refused
from worker_scheduler.fanout import opening, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import daily_runs, months
from worker_scheduler.ledger.histories import History
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance import pruner, reconciler

Scheduler = Callable[..., Outcome]
DAYS = timedelta(days=90)


@pytest.fixture
def context(deployed: None, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


@pytest.fixture
def march(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """Runs two days of March and one of April, and finishes their jobs."""
    make_users(ledger.url, 5)
    for at in (MARCH_ENDS - timedelta(days=20), MARCH_ENDS - timedelta(days=19), MARCH_ENDS):
        run_day(context, clock, at)
        finish_all(context, ledger, clock)


@pytest.mark.usefixtures("march")
@pytest.mark.parametrize(
    ("now", "dropped"),
    [(MARCH_ENDS + DAYS - INSTANT, []), (MARCH_ENDS + DAYS, ["sync_jobs_2026_03"])],
)
def test_a_month_goes_when_it_ended_long_enough_ago(
    now: datetime, dropped: list[str], context: TickContext, ledger: Ledger
) -> None:
    left = {"sync_jobs_2026_04": 5} if dropped else {"sync_jobs_2026_03": 10, "sync_jobs_2026_04": 5}
    rehearsed = pruner.prune_ledger(context.database, now, DAYS, dry_run=True)
    assert (rehearsed.months, len(places(ledger))) == (dropped, 2)
    pruned = pruner.prune_ledger(context.database, now, DAYS, dry_run=False)
    assert (pruned.months, pruned.jobs, pruned.kept) == (dropped, 10 if dropped else 0, {})
    assert rehearsed == pruned
    assert places(ledger) == left
    assert ledger.value("SELECT sum(jobs) FROM sync_batches") == sum(left.values())
    assert ledger.value("SELECT count(*) FROM sync_runs") == 3
    assert pruner.prune_ledger(context.database, now, DAYS, dry_run=False).months == []


@pytest.mark.usefixtures("march")
def test_a_month_with_a_run_that_is_not_over_stays(context: TickContext, ledger: Ledger) -> None:
    ledger.execute("UPDATE sync_runs SET state = 'ENQUEUED' WHERE partition_key = 'daily:2026-03-13'")
    pruned = pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    assert pruned.months == []
    assert list(pruned.kept) == ["sync_jobs_2026_03"]
    assert "daily:2026-03-13" in pruned.kept["sync_jobs_2026_03"]
    assert places(ledger)["sync_jobs_2026_03"] == 10


@pytest.mark.usefixtures("march")
def test_a_month_with_a_run_that_ended_lately_stays(context: TickContext, ledger: Ledger) -> None:
    """The run finished after its month ended, because users were added late."""
    ended = MARCH_ENDS + INSTANT
    ledger.execute(f"UPDATE sync_runs SET finished_at = '{ended}' WHERE partition_key = 'daily:2026-03-13'")
    assert pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False).months == []
    pruned = pruner.prune_ledger(context.database, ended + DAYS, DAYS, dry_run=False)
    assert pruned.months == ["sync_jobs_2026_03"]


@pytest.mark.usefixtures("march")
def test_a_pruned_partition_keeps_its_counts_and_is_refused(
    context: TickContext, ledger: Ledger, broker: Broker, scheduler: Scheduler
) -> None:
    """The jobs are gone, so another tick would give every user a second one."""
    pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    status = scheduler("status", "daily:2026-03-12", "--json").report
    assert (status["jobs"]["COMPLETED"], status["state"]) == (5, "FINISHED")
    assert status["pruned_at"].startswith("2026-06-30")
    before = ledger.everything(), broker.everything()
    outcome = scheduler("daily", "--date", "2026-03-12")
    assert outcome.status == 3
    assert "daily:2026-03-12 was pruned on 2026-06-30" in outcome.error
    assert (ledger.everything(), broker.everything()) == before
    assert reconciler.reconcile(context).errors == []


@pytest.mark.usefixtures("march")
def test_a_tick_that_meets_the_prune_is_refused(context: TickContext, ledger: Ledger) -> None:
    """The prune comes between the tick's check and its first row."""
    key, chosen = "daily:2026-03-12", [user_id(1)]
    new = NewRun(uuid4(), key, Kind.DAILY, "scheduler.daily", None, chosen, None, None)
    pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    before = ledger.everything()
    with pytest.raises(Refused, match="was pruned"):
        opening.open_run(context, new, None, Asked("daily", key, "test", "test"))
    assert ledger.everything() == before


@pytest.mark.usefixtures("march")
def test_a_month_goes_while_the_table_is_in_use(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """The prune waits for an open transaction, and no other process waits for the prune."""
    reading, pruned, never = Event(), Event(), Event()

    def read_for_a_while() -> None:
        with psycopg.connect(ledger.url) as connection:
            connection.execute("SELECT count(*) FROM sync_jobs")
            reading.set()
            never.wait(2.5)  # so long that the first attempts at the lock fail

    def tick_all_the_time() -> None:
        with context_at(clock) as own:
            for number in range(200):
                report = tick.daily(own, DailyOptions(date=NOON.date() + timedelta(days=number)))
                assert report.failure is None, report
                if pruned.is_set():
                    return

    with ThreadPoolExecutor(2) as threads:
        reader = threads.submit(read_for_a_while)
        assert reading.wait(10)
        user = threads.submit(tick_all_the_time)
        try:
            done = pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
        finally:
            pruned.set()
        reader.result(60)
        user.result(60)
    assert done.months == ["sync_jobs_2026_03"]


@pytest.mark.usefixtures("march")
def test_two_prunes_at_once(context: TickContext, ledger: Ledger) -> None:
    """One of the two drops each month and counts it."""
    with psycopg.connect(
        ledger.url
    ) as reader:  # so that both have seen the months when one drops the first
        reader.execute("SELECT count(*) FROM sync_jobs")
        release = Timer(1.5, reader.rollback)
        release.start()
        now = MARCH_ENDS + timedelta(days=60) + DAYS
        done = at_once(context, 2, lambda own: pruner.prune_ledger(own.database, now, DAYS, dry_run=False))
        release.join()
    dropped = [name for pruned in done for name in pruned.months]
    assert sorted(dropped) == ["sync_jobs_2026_03", "sync_jobs_2026_04"]
    assert (sum(pruned.runs for pruned in done), sum(pruned.jobs for pruned in done)) == (3, 15)
    assert places(ledger) == {}


@pytest.mark.usefixtures("march")
def test_a_missed_day_of_a_month_that_was_dropped_can_still_be_run(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Its month is not made again; the default partition takes its jobs."""
    with context.database.autocommit() as connection:
        assert daily_runs.record_missed(
            connection,
            run_id=months.new_run_id(MARCH_ENDS - INSTANT),
            partition_key="daily:2026-03-20",
            triggered_by="scheduler.daily",
            requested_by="test",
            slot=MARCH_ENDS - timedelta(days=12),
            because=None,
            now=MARCH_ENDS - INSTANT,
        )
    pruned = pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    assert pruned.months == ["sync_jobs_2026_03"]
    clock.now = MARCH_ENDS + DAYS
    report = tick.daily(context, DailyOptions(date=date(2026, 3, 20)))
    assert (report.jobs_inserted, report.jobs_enqueued) == (5, 5)
    assert places(ledger) == {"sync_jobs_monthless": 5, "sync_jobs_2026_04": 5}
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 10}
    # It is kept for as long as any other run, counted from its end.
    assert pruner.prune_ledger(context.database, clock() + DAYS - INSTANT, DAYS, dry_run=False).jobs == 5
    assert places(ledger) == {"sync_jobs_monthless": 5}
    pruned = pruner.prune_ledger(context.database, clock() + DAYS, DAYS, dry_run=False)
    assert (pruned.months, pruned.runs, pruned.jobs) == ([], 1, 5)


@pytest.mark.usefixtures("march")
def test_the_command(scheduler: Scheduler, ledger: Ledger) -> None:
    outcome = scheduler("prune", "--older-than", "90d", "--json")
    assert (outcome.status, outcome.report["months"]) == (0, ["sync_jobs_2026_03", "sync_jobs_2026_04"])
    assert (outcome.report["runs"], outcome.report["jobs"], outcome.report["kept"]) == (3, 15, {})
    assert scheduler("prune", "--older-than", "90").stdout == "dropped no month: 0 runs, 0 jobs\n"


@pytest.mark.parametrize("value", [None, "0", "3651", "-1d", "x", "1.5", "90dd"])
def test_a_bad_age_is_refused(value: str | None, scheduler: Scheduler) -> None:
    outcome = scheduler("prune", *([] if value is None else [f"--older-than={value}"]))
    assert outcome.status == 2
    assert "--older-than" in outcome.error
    assert "a number of days from 1 to 3650, such as 90d" in outcome.error


def test_what_is_in_no_month_is_pruned_row_by_row(ledger: Ledger, scheduler: Scheduler) -> None:
    add_runs_in_no_month(ledger)
    with context_at(HandedClock()) as context:
        just_before = pruner.prune_ledger(
            context.database, MARCH_ENDS + DAYS - INSTANT, DAYS, dry_run=False
        )
        assert (just_before.runs, ledger.count()) == (0, 6)
        pruned = pruner.prune_ledger(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    assert (pruned.months, pruned.runs, pruned.jobs) == ([], 1, 3)
    assert {job["partition_key"] for job in ledger.jobs()} == {"daily:2026-11-23"}
    assert ledger.value("SELECT count(*) FROM sync_batches") == 1
    assert "was pruned" in scheduler("daily", "--date", "2026-03-12").error


def test_older_rows_are_never_pruned(
    empty_database_url: str, deployed: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    OLDER_SCHEDULERS[0].leave_behind(empty_database_url, 4)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    scheduler("migrate")
    ledger = Ledger(empty_database_url)
    ledger.execute("UPDATE sync_jobs SET created_at = '2020-01-01'")
    assert scheduler("prune", "--older-than", "1d", "--json").report["jobs"] == 0
    assert places(ledger) == {"sync_jobs": 12}


def add_request(ledger: Ledger, at: datetime) -> None:
    ledger.execute(
        "INSERT INTO sync_requests (request_id, requested_at, verb, actor, source, options, outcome)"
        f" VALUES (gen_random_uuid(), '{at}', 'daily', 'a', 'b', '{{}}', 'opened')"
    )


def add_event(ledger: Ledger, at: datetime) -> None:
    ledger.execute(
        "INSERT INTO sync_job_events (happened_at, job_id, user_id, attempt, event)"
        f" VALUES ('{at}', gen_random_uuid(), gen_random_uuid(), 1, 'failed')"
    )


ADD = {History.REQUESTS: add_request, History.JOB_EVENTS: add_event}


def kept(ledger: Ledger, history: History) -> list[datetime]:
    table, moment = history.value
    return [row["at"] for row in ledger.rows(f"SELECT {moment} AS at FROM {table} ORDER BY 1")]


@pytest.mark.parametrize("history", History)
def test_a_month_of_a_history_goes_when_it_ended_long_enough_ago(
    history: History, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    clock.now = MARCH_ENDS - timedelta(days=2)
    reconciler.history_months(context)
    rows = [MARCH_ENDS - INSTANT, MARCH_ENDS]
    for at in rows:
        ADD[history](ledger, at)
    march = f"{history.table}_2026_03"

    def prune(now: datetime, *, dry_run: bool = False) -> list[str]:
        return pruner.prune_history(context.database, history, now, DAYS, dry_run=dry_run)

    assert prune(MARCH_ENDS + DAYS - INSTANT) == []
    assert prune(MARCH_ENDS + DAYS, dry_run=True) == [march]
    assert kept(ledger, history) == rows
    assert prune(MARCH_ENDS + DAYS) == [march]
    assert kept(ledger, history) == rows[1:]
    assert ledger.value("SELECT to_regclass(%s)", march) is None
    assert prune(MARCH_ENDS + DAYS) == []


@pytest.mark.parametrize("history", History)
def test_rows_of_a_history_in_no_month_go_by_their_age(
    history: History, context: TickContext, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "_ROWS_AT_ONCE", 2)
    rows = [NOON - DAYS - timedelta(hours=hours) for hours in (3, 2, 1, 0)] + [NOON - DAYS + INSTANT]
    for at in rows:
        ADD[history](ledger, at)
    pruner.prune_history(context.database, history, NOON, DAYS, dry_run=True)
    assert kept(ledger, history) == rows
    assert pruner.prune_history(context.database, history, NOON, DAYS, dry_run=False) == []
    assert kept(ledger, history) == rows[-1:]


def test_two_prunes_of_a_history_at_once(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    clock.now = MARCH_ENDS - timedelta(days=2)
    reconciler.history_months(context)
    dropped = at_once(
        context,
        3,
        lambda own: pruner.prune_history(
            own.database, History.JOB_EVENTS, MARCH_ENDS + DAYS, DAYS, dry_run=False
        ),
    )
    assert sorted(dropped) == [[], [], ["sync_job_events_2026_03"]]


def test_each_history_has_an_age_of_its_own(
    scheduler: Scheduler, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    clock.now = MARCH_ENDS - timedelta(days=2)
    reconciler.history_months(context)
    with freeze_time(MARCH_ENDS + timedelta(days=100), tick=False, ignore=["celery", "kombu", "redis"]):
        ages = ("--requests-older-than", "100d", "--events-older-than", "101")
        command = ("prune", "--older-than", "3650d", "--json")
        assert scheduler(*command, "--dry-run").report["months"] == ["sync_job_events_2026_03"]
        assert scheduler(*command, "--dry-run", *ages).report["months"] == ["sync_requests_2026_03"]
        assert scheduler(*command, *ages).report["months"] == ["sync_requests_2026_03"]
        assert scheduler(*command, *ages).report["months"] == []
        outcome = scheduler("prune", "--older-than", "90d", "--events-older-than", "0")
    assert (outcome.status, outcome.error[:28]) == (2, "--events-older-than='0': all")
