"""Jobs by months: which one a run and its jobs are in, how a month is made, and how months are pruned."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from threading import Event, Timer
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest
from alembic import command

from tests.support.command_line import Outcome
from tests.support.contexts import INSTANT, NOON, HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.older_scheduler import OLDER_SCHEDULERS
from tests.support.users import make_users
from worker_scheduler import pruner, reconciler, tick
from worker_scheduler.context import TickContext
from worker_scheduler.errors import Refused, StoreUnavailable
from worker_scheduler.ledger import jobs, months, runs, schema
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.tables import JobStatus, Kind
from worker_scheduler.options import DailyOptions
from worker_scheduler.report import Report
from worker_scheduler.users import Selection

Scheduler = Callable[..., Outcome]

LEASE = timedelta(seconds=45)
DAYS = timedelta(days=90)
MARCH_ENDS = datetime(2026, 4, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


def run_day(context: TickContext, clock: HandedClock, at: datetime) -> Report:
    """A day's run, made then."""
    clock.now = at
    return tick.daily(context, DailyOptions(date=at.date()))


def finish_all(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    for job in ledger.jobs():
        with context.database.autocommit() as connection:
            claimed = jobs.claim(connection, job["job_id"], clock(), clock() + LEASE)
            if claimed is not None:
                assert jobs.finish(connection, claimed, JobStatus.COMPLETED, None, clock())
    reconciler.finished_runs(context)


def places(ledger: Ledger) -> dict[str, int]:
    """How many jobs are in each partition."""
    rows = ledger.rows("SELECT tableoid::regclass::text AS place, count(*) AS n FROM sync_jobs GROUP BY 1")
    return {row["place"]: row["n"] for row in rows}


# --- which month ------------------------------------------------------------------------------------


def test_a_run_stays_in_its_month(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """Who is added a month later is in the same partition, where the unique index sees them."""
    make_users(ledger.url, 10)
    run_day(context, clock, NOON)
    make_users(ledger.url, 15)
    clock.forward(timedelta(days=20))
    report = tick.daily(context, DailyOptions(date=NOON.date()))
    assert report.jobs_inserted == 5
    assert places(ledger) == {"sync_jobs_2026_11": 15}
    assert len({months.month_of(job["job_id"]) for job in ledger.jobs()}) == 1
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 15}


@pytest.mark.parametrize(
    ("at", "place"),
    [(MARCH_ENDS - INSTANT, "sync_jobs_2026_03"), (MARCH_ENDS, "sync_jobs_2026_04")],
)
def test_a_month_ends_with_its_last_instant(
    at: datetime, place: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    make_users(ledger.url, 3)
    run_day(context, clock, at)
    assert places(ledger) == {place: 3}


def test_a_chunk_that_is_planned_after_the_month_can_be_claimed(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    make_users(ledger.url, 3)
    clock.now = MARCH_ENDS - INSTANT
    started = clock.now

    class Passing(HandedClock):
        """Each look at it is a second later."""

        def __call__(self) -> datetime:
            self.forward(timedelta(seconds=1))
            return self.now

    with context_at(Passing(started - timedelta(seconds=3))) as passing:
        tick.daily(passing, DailyOptions(date=started.date()))
    assert ledger.value("SELECT count(*) FROM sync_jobs WHERE created_at >= %s", MARCH_ENDS) == 3
    assert places(ledger) == {"sync_jobs_2026_03": 3}
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 3}


def test_a_job_of_no_run_can_be_claimed(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """As an older scheduler's, whose ids are random, or of an earlier version's runs."""
    ledger.execute(
        "INSERT INTO sync_jobs (job_id, user_id, triggered_by, partition_key, run_id)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'scheduler.daily', 'x', run"
        " FROM (VALUES (NULL::uuid), (gen_random_uuid())) runs(run)"
    )
    assert places(ledger) == {"sync_jobs_monthless": 2}
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 2}


@pytest.mark.parametrize(
    ("identity", "month"),
    [
        ("01a1dc80-f000-7000-8000-000000000000", date(2026, 11, 1)),
        ("01a1dc80-f000-4000-8000-000000000000", None),
        ("e6707a6e-afff-7000-8000-000000000000", date(9998, 12, 1)),
        ("e6707a6e-b000-7000-8000-000000000000", None),
        ("ffffffff-ffff-7000-8000-000000000000", None),
    ],
)
def test_the_month_of_an_id(identity: str, month: date | None) -> None:
    assert months.month_of(UUID(identity)) == month


# --- a month is made --------------------------------------------------------------------------------


def test_the_next_month_is_made_ahead(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    clock.now = datetime(2031, 12, 5, tzinfo=UTC)
    assert reconciler.next_month(context) == 1
    assert reconciler.next_month(context) == 0
    assert ledger.value("SELECT to_regclass('sync_jobs_2032_01')::text") == "sync_jobs_2032_01"


def test_a_month_is_made_while_others_write(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    make_users(ledger.url, 3)
    run_day(context, clock, NOON)
    with psycopg.connect(ledger.url) as other:  # in the middle of a transaction
        other.execute("UPDATE sync_jobs_2026_11 SET error_message = 'x'")
        report = run_day(context, clock, NOON.replace(year=2031))
    assert report.jobs_enqueued == 3
    assert places(ledger) == {"sync_jobs_2026_11": 3, "sync_jobs_2031_11": 3}


def test_where_a_month_cannot_be_made_jobs_are_planned_all_the_same(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """A run of an earlier version may have a random id that falls into the month."""
    id_of_that_month = months.new_run_id(datetime(2031, 1, 15, tzinfo=UTC))
    ledger.execute(
        "INSERT INTO sync_jobs (job_id, user_id, triggered_by, partition_key, run_id)"
        f" VALUES (gen_random_uuid(), gen_random_uuid(), 'scheduler.daily', 'x', '{id_of_that_month}')"
    )
    make_users(ledger.url, 3)
    assert run_day(context, clock, datetime(2031, 1, 20, tzinfo=UTC)).jobs_enqueued == 3
    assert places(ledger) == {"sync_jobs_monthless": 4}
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 4}


@pytest.fixture
def backup(ledger: Ledger) -> Iterator[psycopg.Connection]:
    """Somebody who has looked at every partition, and whose transaction goes on."""
    with psycopg.connect(ledger.url) as connection:
        connection.execute("SELECT count(*) FROM sync_jobs")
        yield connection


@pytest.mark.parametrize(
    ("now", "is_near"),
    [(MARCH_ENDS - timedelta(days=3) - INSTANT, False), (MARCH_ENDS - timedelta(days=3), True)],
)
def test_the_next_month_waits_for_a_long_reader_until_it_is_near(
    now: datetime,
    is_near: bool,
    context: TickContext,
    ledger: Ledger,
    clock: HandedClock,
    backup: psycopg.Connection,
) -> None:
    clock.now = now
    if is_near:
        with pytest.raises(
            StoreUnavailable, match=r"sync_jobs_2026_04 cannot be made.*end that transaction"
        ):
            reconciler.next_month(context)
    else:
        assert reconciler.next_month(context) == 0
    assert ledger.value("SELECT to_regclass('sync_jobs_2026_04')") is None
    backup.rollback()
    assert reconciler.next_month(context) == 1


def test_claims_hardly_wait_for_a_month_that_cannot_be_made(
    context: TickContext, ledger: Ledger, clock: HandedClock, backup: psycopg.Connection
) -> None:
    """They lock all partitions, and so queue up behind who waits for one: for 0.2 s, not for 5."""
    make_users(ledger.url, 3)
    run_day(context, clock, NOON)
    backup.execute("SELECT count(*) FROM sync_jobs")
    clock.now = NOON.replace(year=2031)
    going, ended = Event(), Event()

    def longest_claim() -> float:
        longest = 0.0
        # Unprepared: behind a pooler, each statement may come to another server process.
        with psycopg.connect(ledger.url, autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                began = monotonic()
                connection.execute(
                    "UPDATE sync_jobs SET attempt = attempt WHERE job_id = gen_random_uuid()"
                )
                longest = max(longest, monotonic() - began)
                going.set()
        return longest

    with ThreadPoolExecutor(1) as thread:
        claims = thread.submit(longest_claim)
        try:
            assert going.wait(30)
            assert reconciler.next_month(context) == 0
        finally:
            ended.set()
    assert 0.1 < claims.result() < 2  # they do meet; the upper bound is for a machine that is busy


def test_a_tick_whose_month_cannot_be_made_uses_the_default_partition(
    context: TickContext, ledger: Ledger, clock: HandedClock, broker: Broker, backup: psycopg.Connection
) -> None:
    """And so does the rest of its month; the month after has its own, and prune takes the run by itself."""
    make_users(ledger.url, 3)
    at = datetime(2031, 3, 5, tzinfo=UTC)
    assert run_day(context, clock, at).jobs_enqueued == 3
    assert broker.count("daily") == 3
    backup.rollback()
    assert run_day(context, clock, at + timedelta(days=1)).jobs_enqueued == 3
    assert places(ledger) == {"sync_jobs_monthless": 6}
    assert reconciler.next_month(context) == 1
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 6}
    ended = clock()
    clock.forward(timedelta(days=31))
    assert run_day(context, clock, clock()).jobs_enqueued == 3
    assert places(ledger) == {"sync_jobs_monthless": 6, "sync_jobs_2031_04": 3}
    pruned = pruner.prune(context.database, ended + DAYS, DAYS, dry_run=False)
    assert (pruned.runs, pruned.jobs) == (2, 6)
    assert places(ledger) == {"sync_jobs_2031_04": 3}


def test_a_tick_that_may_wait_a_moment_gets_its_month(
    context: TickContext, ledger: Ledger, clock: HandedClock, backup: psycopg.Connection
) -> None:
    make_users(ledger.url, 3)
    context = replace(context, pause=lambda _: backup.rollback())
    assert run_day(context, clock, datetime(2031, 3, 5, tzinfo=UTC)).jobs_enqueued == 3
    assert places(ledger) == {"sync_jobs_2031_03": 3}


def test_who_finds_the_month_in_the_default_partition_asks_for_no_lock(
    context: TickContext, ledger: Ledger, clock: HandedClock, backup: psycopg.Connection
) -> None:
    make_users(ledger.url, 1)
    at = datetime(2031, 3, 5, tzinfo=UTC)
    run_day(context, clock, at)
    with context.database.autocommit() as connection:
        assert months.ensure(connection, months.new_run_id(at)) is False


# --- prune ------------------------------------------------------------------------------------------


@pytest.fixture
def march(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """Two days of March and one of April, all done."""
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
    rehearsed = pruner.prune(context.database, now, DAYS, dry_run=True)
    assert (rehearsed.months, len(places(ledger))) == (dropped, 2)
    pruned = pruner.prune(context.database, now, DAYS, dry_run=False)
    assert (pruned.months, pruned.jobs, pruned.kept) == (dropped, 10 if dropped else 0, {})
    assert rehearsed == pruned
    assert places(ledger) == left
    assert ledger.value("SELECT sum(jobs) FROM sync_batches") == sum(left.values())
    assert ledger.value("SELECT count(*) FROM sync_runs") == 3
    assert pruner.prune(context.database, now, DAYS, dry_run=False).months == []


@pytest.mark.usefixtures("march")
def test_a_month_with_a_run_that_is_not_over_stays(context: TickContext, ledger: Ledger) -> None:
    ledger.execute("UPDATE sync_runs SET state = 'ENQUEUED' WHERE partition_key = 'daily:2026-03-13'")
    pruned = pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    assert pruned.months == []
    assert list(pruned.kept) == ["sync_jobs_2026_03"]
    assert "daily:2026-03-13" in pruned.kept["sync_jobs_2026_03"]
    assert places(ledger)["sync_jobs_2026_03"] == 10


@pytest.mark.usefixtures("march")
def test_a_month_with_a_run_that_ended_lately_stays(context: TickContext, ledger: Ledger) -> None:
    """Its jobs are younger than it: users were added long after."""
    ended = MARCH_ENDS + INSTANT
    ledger.execute(f"UPDATE sync_runs SET finished_at = '{ended}' WHERE partition_key = 'daily:2026-03-13'")
    assert pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False).months == []
    pruned = pruner.prune(context.database, ended + DAYS, DAYS, dry_run=False)
    assert pruned.months == ["sync_jobs_2026_03"]


@pytest.mark.usefixtures("march")
def test_a_pruned_partition_keeps_its_counts_and_is_refused(
    context: TickContext, ledger: Ledger, broker: Broker, scheduler: Scheduler
) -> None:
    """Nobody knows any more who has had a job: another tick would give everybody a second one."""
    pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
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
    """Between its look and its first row."""
    request = tick._Request(Kind.DAILY, 1, "daily:2026-03-12", "scheduler.daily", None, DailyOptions())
    pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    with pytest.raises(Refused, match="was pruned"):
        tick._open(context, request, Selection(user_ids=None, total=5))


@pytest.mark.usefixtures("march")
def test_a_month_goes_while_the_table_is_in_use(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Whoever is in the middle of a transaction is waited for, and nobody else waits for that."""
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
            done = pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
        finally:
            pruned.set()
        reader.result(60)
        user.result(60)
    assert done.months == ["sync_jobs_2026_03"]


@pytest.mark.usefixtures("march")
def test_two_prunes_at_once(context: TickContext, ledger: Ledger) -> None:
    """Each month is dropped, and counted, by one of them."""
    with psycopg.connect(
        ledger.url
    ) as reader:  # so that both have seen the months when one drops the first
        reader.execute("SELECT count(*) FROM sync_jobs")
        release = Timer(1.5, reader.rollback)
        release.start()
        now = MARCH_ENDS + timedelta(days=60) + DAYS
        done = at_once(context, 2, lambda own: pruner.prune(own.database, now, DAYS, dry_run=False))
        release.join()
    dropped = [name for pruned in done for name in pruned.months]
    assert sorted(dropped) == ["sync_jobs_2026_03", "sync_jobs_2026_04"]
    assert (sum(pruned.runs for pruned in done), sum(pruned.jobs for pruned in done)) == (3, 15)
    assert places(ledger) == {}


@pytest.mark.usefixtures("march")
def test_a_missed_day_of_a_month_that_was_dropped_can_still_be_run(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """Its run is of that month, which is not made again; the default partition takes its jobs."""
    with context.database.autocommit() as connection:
        assert runs.record_missed(
            connection,
            run_id=months.new_run_id(MARCH_ENDS - INSTANT),
            partition_key="daily:2026-03-20",
            triggered_by="scheduler.daily",
            requested_by="test",
            slot=MARCH_ENDS - timedelta(days=12),
            now=MARCH_ENDS - INSTANT,
        )
    pruned = pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    assert pruned.months == ["sync_jobs_2026_03"]
    clock.now = MARCH_ENDS + DAYS
    report = tick.daily(context, DailyOptions(date=date(2026, 3, 20)))
    assert (report.jobs_inserted, report.jobs_enqueued) == (5, 5)
    assert places(ledger) == {"sync_jobs_monthless": 5, "sync_jobs_2026_04": 5}
    finish_all(context, ledger, clock)
    assert ledger.states() == {"COMPLETED": 10}
    # As long as any other run it stays, from its end on.
    assert pruner.prune(context.database, clock() + DAYS - INSTANT, DAYS, dry_run=False).jobs == 5
    assert places(ledger) == {"sync_jobs_monthless": 5}
    pruned = pruner.prune(context.database, clock() + DAYS, DAYS, dry_run=False)
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


# --- what is in no month ----------------------------------------------------------------------------


@pytest.fixture
def before_months(empty_database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The tables of version 0001, with a finished run, one under way, and who may use them."""
    database = Database(empty_database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    with database.transaction() as connection:
        command.upgrade(schema._config(connection), "0001")
    database.dispose()
    make_users(empty_database_url, 6)
    ledger = Ledger(empty_database_url)
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
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    return ledger


def test_months_of_an_earlier_version_get_its_successors_index_and_function(
    empty_database_url: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(empty_database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    with database.transaction() as connection:
        command.upgrade(schema._config(connection), "0002")
        assert months.ensure(connection, months.new_run_id(NOON))
    database.dispose()
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert scheduler("migrate").status == 0
    ledger = Ledger(empty_database_url)
    of_leases = ledger.rows("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%(leased_until)%'")
    assert len(of_leases) == 3  # of the whole, of the default partition, of November
    assert all(index["indexdef"].endswith("WHERE (leased_until IS NOT NULL)") for index in of_leases)
    options = ledger.value("SELECT proconfig FROM pg_proc WHERE proname = 'sync_jobs_add_month'")
    assert "lock_timeout=200ms" in options


def where_rows_are(ledger: Ledger) -> list[dict[str, Any]]:
    """And what is in the columns that they have always had."""
    return ledger.rows(
        "SELECT ctid::text, xmin::text, to_jsonb(sync_jobs) - 'republished_in' AS t"
        " FROM sync_jobs ORDER BY 1"
    )


def test_a_table_of_ours_is_divided_without_writing_a_row(
    before_months: Ledger, scheduler: Scheduler, broker: Broker
) -> None:
    ledger = before_months
    before = where_rows_are(ledger)
    assert scheduler("migrate").status == 0
    assert where_rows_are(ledger) == before
    assert places(ledger) == {"sync_jobs_monthless": 6}
    # The run under way goes on: those without a job get one, and the unique index sees them all.
    report = scheduler("daily", "--date", "2026-11-23", "--json").report
    assert (report["outcome"], report["jobs_inserted"]) == ("enqueued", 3)
    assert len({job["user_id"] for job in ledger.jobs("daily:2026-11-23")}) == 6
    with context_at(HandedClock()) as context:
        finish_all(context, ledger, HandedClock())
    assert ledger.states() == {"COMPLETED": 9}


def test_what_is_in_no_month_is_pruned_row_by_row(before_months: Ledger, scheduler: Scheduler) -> None:
    ledger = before_months
    scheduler("migrate")
    with context_at(HandedClock()) as context:
        just_before = pruner.prune(context.database, MARCH_ENDS + DAYS - INSTANT, DAYS, dry_run=False)
        assert (just_before.runs, ledger.count()) == (0, 6)
        pruned = pruner.prune(context.database, MARCH_ENDS + DAYS, DAYS, dry_run=False)
    assert (pruned.months, pruned.runs, pruned.jobs) == ([], 1, 3)
    assert {job["partition_key"] for job in ledger.jobs()} == {"daily:2026-11-23"}
    assert ledger.value("SELECT count(*) FROM sync_batches") == 1
    assert "was pruned" in scheduler("daily", "--date", "2026-03-12").error


def test_grants_are_kept(before_months: Ledger, scheduler: Scheduler) -> None:
    ledger = before_months
    role = f"reader_{ledger.url.rpartition('_')[2]}"
    ledger.execute(
        f"CREATE ROLE {role}",
        f"GRANT SELECT ON sync_jobs TO {role}",
        f"GRANT UPDATE (status, attempt) ON sync_jobs TO {role}",
    )
    try:
        scheduler("migrate")
        ledger.execute(
            f"SET LOCAL ROLE {role}", "SELECT * FROM sync_jobs", "UPDATE sync_jobs SET attempt = 1"
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ledger.execute(f"SET LOCAL ROLE {role}", "UPDATE sync_jobs SET user_id = job_id")
    finally:
        ledger.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "hanging",
    [
        "CREATE VIEW waiting AS SELECT * FROM sync_jobs WHERE status = 'PENDING'",
        "CREATE TABLE notes (job_id uuid REFERENCES sync_jobs)",
        "CREATE TRIGGER t BEFORE UPDATE ON sync_jobs FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    ],
    ids=["view", "foreign key", "trigger"],
)
def test_a_table_on_which_others_hang_stays_whole(
    hanging: str, before_months: Ledger, scheduler: Scheduler
) -> None:
    ledger = before_months
    ledger.execute(hanging)
    outcome = scheduler("migrate")
    assert outcome.status == 0
    assert "sync_jobs stays one table" in outcome.stderr
    assert places(ledger) == {"sync_jobs": 6}
    assert scheduler("daily", "--date", "2026-11-23", "--json").report["jobs_inserted"] == 3
    assert scheduler("reconcile").status == 0
    assert scheduler("prune", "--older-than", "90d", "--json").report["runs"] == 1
    assert places(ledger) == {"sync_jobs": 6}


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
