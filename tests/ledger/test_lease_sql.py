"""What every lease has in common, in whatever table: waits for locks count, and none lasts for ever."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event, Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Connection

from tests.maintenance.situations import KEY, LEASE, batch_not_enqueued, claim, enqueue, half_planned
from tests.support import attempts
from tests.support.contexts import NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.waiting import wait_until
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import batches, dead_workers, jobs, locks, rescue, runs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind

HELD_SECONDS = 1.2
UNTIL = NOON + LEASE
HOLDER = uuid4()
WAITS_FOR = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid())"


@pytest.fixture
def context(deployed: None, ledger: Ledger) -> Iterator[TickContext]:
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON}'")
    with context_at(HandedClock(), enqueue_batch_size=10) as context:
        yield context


@contextmanager
def held(ledger: Ledger, statement: str) -> Iterator[None]:
    """While the block runs, another transaction holds what the statement locks, and changes nothing."""
    with psycopg.connect(ledger.url) as other:
        other.execute(statement.encode())
        yield
        other.rollback()


def while_held(ledger: Ledger, statement: str, step: Callable[[], object]) -> None:
    """Calls `step` while a lock is held, which is released after HELD_SECONDS of waiting."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - a thread's error must not be lost
            raised.append(error)

    thread = Thread(target=call)
    with held(ledger, statement):
        thread.start()
        wait_until(lambda: ledger.value(WAITS_FOR), 30, "a statement that waits")
        Event().wait(HELD_SECONDS)
    thread.join(30)
    assert not raised, raised


# --- a lease is as old as the lock of its row -------------------------------------------------------


class Situation:
    """A row whose lease a statement of the product is about to write."""

    table: str
    column = "leased_until"

    def prepare(self, context: TickContext, ledger: Ledger) -> None: ...

    def write(self, connection: Connection) -> None: ...


class AClaim(Situation):
    table = "sync_jobs"

    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        (self.job_id,) = enqueue(context, ledger, 1)

    def write(self, connection: Connection) -> None:
        assert attempts.claim(connection, self.job_id, NOON, UNTIL) is not None


class AJobsHeartbeat(Situation):
    """Waits for a table only: a row that is locked it skips."""

    table = "sync_jobs"

    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        self.job = claim(context, *enqueue(context, ledger, 1))

    def write(self, connection: Connection) -> None:
        renewal = jobs.extend_leases(connection, [self.job], UNTIL)
        assert (renewal.lost, renewal.held_up) == ([], [])


class ANewRun(Situation):
    table = "sync_runs"

    def prepare(self, context: TickContext, ledger: Ledger) -> None: ...

    def write(self, connection: Connection) -> None:
        new = NewRun(uuid4(), KEY, Kind.DAILY, "scheduler.daily", None, None, None, None)
        assert runs.open_run(connection, new, NOON, UNTIL) is not None


class ARunOpenedAgain(ANewRun):
    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        enqueue(context, ledger, 1)


class ARunsHeartbeat(Situation):
    table = "sync_runs"

    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        half_planned(context, ledger, leased_until=NOON)
        self.run_id: UUID = ledger.value("SELECT run_id FROM sync_runs")

    def write(self, connection: Connection) -> None:
        assert runs.renew(connection, self.run_id, UNTIL)


class ARunTakenOver(ARunsHeartbeat):
    def write(self, connection: Connection) -> None:
        assert runs.take_over(connection, NOON, UNTIL) is not None


class ABatch(Situation):
    table, column = "sync_batches", "claimed_until"

    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        batch_not_enqueued(context, ledger, claimed_until=NOON)
        self.run_id: UUID = ledger.value("SELECT run_id FROM sync_runs")

    def write(self, connection: Connection) -> None:
        assert batches.claim(connection, self.run_id, HOLDER, limit=9, now=NOON, claimed_until=UNTIL)


class ALock(Situation):
    table = "sync_locks"

    def prepare(self, context: TickContext, ledger: Ledger) -> None: ...

    def write(self, connection: Connection) -> None:
        assert locks.acquire(connection, 1, HOLDER, partition_key=KEY, now=NOON, leased_until=UNTIL)


class ALockOfADeadTick(ALock):
    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        ledger.execute(f"INSERT INTO sync_locks VALUES (1, gen_random_uuid(), 'x', '{NOON}', '{NOON}')")


class ALocksHeartbeat(Situation):
    table = "sync_locks"

    def prepare(self, context: TickContext, ledger: Ledger) -> None:
        ledger.execute(f"INSERT INTO sync_locks VALUES (1, '{HOLDER}', 'x', '{NOON}', '{NOON}')")

    def write(self, connection: Connection) -> None:
        assert locks.renew(connection, 1, HOLDER, UNTIL)


BEHIND_A_TABLE = [
    *(AClaim, AJobsHeartbeat, ANewRun, ARunsHeartbeat, ARunTakenOver, ABatch, ALock, ALocksHeartbeat)
]
BEHIND_A_ROW = [AClaim, ARunOpenedAgain, ARunsHeartbeat, ALockOfADeadTick, ALocksHeartbeat]
EVERY = [
    *((situation, "LOCK TABLE {table}") for situation in BEHIND_A_TABLE),
    *((situation, "SELECT FROM {table} FOR UPDATE") for situation in BEHIND_A_ROW),
]


@pytest.mark.parametrize(
    ("kind", "lock"), EVERY, ids=lambda value: getattr(value, "__name__", str(value)[:6])
)
def test_a_lease_begins_when_the_wait_for_its_row_has_ended(
    kind: type[Situation], lock: str, context: TickContext, ledger: Ledger
) -> None:
    """By a plain UPDATE it would be as old as the wait is long, and perhaps over."""
    situation = kind()
    situation.prepare(context, ledger)

    def write() -> None:
        with context.database.autocommit() as connection:
            situation.write(connection)

    while_held(ledger, lock.format(table=situation.table), write)
    lease = ledger.value(
        f"SELECT max({situation.column}) FROM {situation.table} WHERE {situation.column} > '{NOON}'"
    )
    assert UNTIL + timedelta(seconds=1) <= lease <= UNTIL + timedelta(seconds=60)


# --- a heartbeat for all jobs of a process ------------------------------------------------------------


def lease_of(ledger: Ledger, job: ClaimedJob) -> datetime:
    lease: datetime = ledger.job(job.job_id)["leased_until"]
    return lease


def test_a_locked_row_holds_up_no_other_heartbeat(context: TickContext, ledger: Ledger) -> None:
    first, second, third, taken = (claim(context, job_id) for job_id in enqueue(context, ledger, 4))
    ledger.execute(f"UPDATE sync_jobs SET attempt = 2 WHERE job_id = '{taken.job_id}'")
    later = UNTIL + LEASE
    with (
        held(ledger, f"SELECT FROM sync_jobs WHERE job_id = '{second.job_id}' FOR UPDATE"),
        context.database.autocommit() as connection,
    ):
        renewal = jobs.extend_leases(connection, [first, second, third, taken], later)
    assert (renewal.lost, renewal.held_up) == ([taken], [second])
    leases = [lease_of(ledger, job) for job in (first, second, third, taken)]
    assert leases == [later, UNTIL, later, UNTIL]


def test_jobs_of_several_months_and_of_none_are_renewed(context: TickContext, ledger: Ledger) -> None:
    """A run's id begins with its time, from which its month follows; older ones are random, or missing."""
    ids = enqueue(context, ledger, 4)
    runs_of = ["019ac9c0-0000-7000-8000-000000000001", str(uuid4()), None]
    for job_id, run_id in zip(ids, runs_of, strict=False):
        value = "NULL" if run_id is None else f"'{run_id}'"
        ledger.execute(f"UPDATE sync_jobs SET run_id = {value} WHERE job_id = '{job_id}'")
    with context.database.autocommit() as connection:
        claimed = [attempts.claim(connection, job_id, NOON, UNTIL) for job_id in ids]
        held_jobs = [job for job in claimed if job is not None]
        groups = jobs.in_groups(held_jobs)
        assert (len(groups), sum(map(len, groups))) == (3, 4)
        for group in groups:
            renewal = jobs.extend_leases(connection, group, UNTIL + LEASE)
            assert (renewal.lost, renewal.held_up) == ([], [])
    assert {lease_of(ledger, job) for job in held_jobs} == {UNTIL + LEASE}


def test_a_thousand_jobs_at_most_are_renewed_by_a_statement() -> None:
    job = ClaimedJob(uuid4(), uuid4(), uuid4(), None, KEY, "x", None, 1)
    assert [len(group) for group in jobs.in_groups([job] * 2500)] == [1000, 1000, 500]


# --- a lease that no process may write ----------------------------------------------------------------

TOO_LONG = [timedelta(minutes=5), timedelta(days=30), timedelta(days=30_000)]


@pytest.mark.parametrize("ahead", TOO_LONG, ids=str)
def test_a_lease_that_lasts_too_long_counts_as_over(
    ahead: timedelta, context: TickContext, ledger: Ledger
) -> None:
    """A process wrote it whose clock is far ahead; the work must not wait until then."""
    until = NOON + ahead
    batch_not_enqueued(context, ledger, claimed_until=until)
    run = ledger.row("SELECT * FROM sync_runs")
    ids = [job["job_id"] for job in ledger.jobs()][-2:]
    running, due = (claim(context, job_id) for job_id in ids)
    with context.database.autocommit() as connection:
        assert attempts.put_off(connection, due, error_message=None, not_before=NOON)
    ledger.execute(
        f"UPDATE sync_runs SET leased_until = '{until}'",
        f"UPDATE sync_jobs SET leased_until = '{until}' WHERE job_id IN ('{ids[0]}', '{ids[1]}')",
        f"INSERT INTO sync_locks VALUES (1, gen_random_uuid(), 'x', '{NOON}', '{until}')",
    )
    with context.database.autocommit() as connection:
        (page,) = dead_workers.expired(connection, NOON)
        assert dead_workers.rescue(connection, page, now=NOON, max_attempts=3) == 1
        (taken,) = rescue.take_due(connection, Kind.DAILY, now=NOON, leased_until=UNTIL, limit=1)
        assert UUID(taken.job_id) in {running.job_id, due.job_id}
        assert not runs.is_being_planned(connection, run["run_id"], NOON)
        assert runs.take_over(connection, NOON, UNTIL) is not None
        assert batches.claim(connection, run["run_id"], HOLDER, limit=9, now=NOON, claimed_until=UNTIL)
        assert locks.holder_of(connection, 1, NOON) is None
        assert locks.acquire(connection, 1, HOLDER, partition_key=KEY, now=NOON, leased_until=UNTIL)
        ledger.execute(f"UPDATE sync_locks SET leased_until = '{until}'")
        assert locks.remove_expired(connection, NOON) == 1


def test_the_longest_lease_of_a_clock_that_is_a_minute_ahead_counts(
    context: TickContext, ledger: Ledger
) -> None:
    until = NOON + timedelta(seconds=120)
    claim(context, *enqueue(context, ledger, 1))
    ledger.execute(f"UPDATE sync_jobs SET leased_until = '{until}'")
    with context.database.autocommit() as connection:
        assert dead_workers.expired(connection, NOON) == []
        (page,) = dead_workers.expired(connection, NOON - timedelta(microseconds=1))
        assert str(until.date()) in page
