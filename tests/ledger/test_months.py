"""Jobs by months: which month partition a run and its jobs are in, and how a month is made."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from threading import Event
from time import monotonic
from uuid import UUID

import psycopg
import pytest

from tests.support.contexts import INSTANT, NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.months import MARCH_ENDS, finish_all, places, run_day
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import months
from worker_scheduler.maintenance import pruner, reconciler

DAYS = timedelta(days=90)


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


def test_a_run_stays_in_its_month(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    """Users who are added a month later go into the same partition, where the unique index sees them."""
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
        """Moves on by a second each time it is read."""

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
    """Such as an older scheduler's job, whose id is random, or one of an earlier version's run."""
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


def test_jobs_are_planned_even_if_their_month_cannot_be_made(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """A run of an earlier version may have a random id that falls into the month, as here."""
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
    """A transaction that has read every partition and stays open, as that of a backup does."""
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
    """Claims lock all partitions, so they wait behind a process that waits for one: 0.2 s, not 5 s."""
    make_users(ledger.url, 3)
    run_day(context, clock, NOON)
    backup.execute("SELECT count(*) FROM sync_jobs")
    clock.now = NOON.replace(year=2031)
    going, ended = Event(), Event()

    def longest_claim() -> float:
        longest = 0.0
        # Not prepared: behind a pooler, each statement may reach a different server process.
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
    assert 0.1 < claims.result() < 2  # claims do wait; the upper bound allows for a busy machine


def test_a_tick_whose_month_cannot_be_made_uses_the_default_partition(
    context: TickContext, ledger: Ledger, clock: HandedClock, broker: Broker, backup: psycopg.Connection
) -> None:
    """So do later runs of that month. The next month has its own partition; prune deletes run by run."""
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
    pruned = pruner.prune_ledger(context.database, ended + DAYS, DAYS, dry_run=False)
    assert (pruned.runs, pruned.jobs) == (2, 6)
    assert places(ledger) == {"sync_jobs_2031_04": 3}


def test_a_tick_that_may_wait_a_moment_gets_its_month(
    context: TickContext, ledger: Ledger, clock: HandedClock, backup: psycopg.Connection
) -> None:
    make_users(ledger.url, 3)
    context = replace(context, pause=lambda _: backup.rollback())
    assert run_day(context, clock, datetime(2031, 3, 5, tzinfo=UTC)).jobs_enqueued == 3
    assert places(ledger) == {"sync_jobs_2031_03": 3}


def test_a_month_found_in_the_default_partition_takes_no_lock(
    context: TickContext, ledger: Ledger, clock: HandedClock, backup: psycopg.Connection
) -> None:
    make_users(ledger.url, 1)
    at = datetime(2031, 3, 5, tzinfo=UTC)
    run_day(context, clock, at)
    with context.database.autocommit() as connection:
        assert months.ensure(connection, months.new_run_id(at)) is False
