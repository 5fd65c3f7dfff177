"""A tick that finds another tick of its partition at work is served by that one, or by reconcile."""

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from tests.support.command_line import Outcome
from tests.support.contexts import NOON, HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, started
from tests.support.selections import selection_of
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import BackfillOptions, DailyOptions, parse_backfill
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report
from worker_scheduler.fanout.tick_lock import TickLock
from worker_scheduler.ledger import runs
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance import reconciler
from worker_scheduler.slots import Slot

Scheduler = Callable[..., Outcome]

DAY = "2026-11-23"
KEY = "p"
BACKFILL_LOCK = 0x7761766502
SLOW = ["--enqueue-batch-size", "1", "--enqueue-sleep-seconds", "0.4"]


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None) -> Iterator[TickContext]:
    with context_at(utc_now) as context:
        yield context


def ids(*numbers: int) -> list[UUID]:
    return [user_id(number) for number in numbers]


def backfill(context: TickContext, *numbers: int) -> Report:
    """A backfill of these users, or of every user."""
    return tick.backfill(context, options(*numbers))


def options(*numbers: int, key: str = KEY, days: int = 7) -> BackfillOptions:
    given = {"backfill_days": days, "partition_key": key, "enqueue_batch_size": 1}
    return parse_backfill(given | ({"user_ids": [str(i) for i in ids(*numbers)]} if numbers else {}))


def served(ledger: Ledger, broker: Broker, queue: str = "backfill") -> Counter[UUID]:
    """How many jobs each user has; fails if a job has no message or two."""
    jobs = ledger.jobs()
    sent = Counter(message.task_id for message in broker.messages(queue))
    assert sent == Counter(str(job["job_id"]) for job in jobs)
    return Counter(job["user_id"] for job in jobs)


def command(environment: dict[str, str], folder: Path, *arguments: str) -> Process:
    return Process([sys.executable, "-m", "worker_scheduler", *arguments], environment, folder / "tick.log")


def at_work(ledger: Ledger, condition: str) -> None:
    query = f"SELECT EXISTS (SELECT FROM sync_runs r WHERE {condition})"
    wait_until(lambda: ledger.value(query), 30, condition)


WAITING = (
    "SELECT EXISTS (SELECT FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database())"
)
ONE_SENT = "EXISTS (SELECT FROM sync_batches b WHERE b.enqueued_at IS NOT NULL)"


@pytest.mark.slow
def test_a_backfill_of_other_users_is_served_by_the_one_that_runs(
    environment: dict[str, str], scheduler: Scheduler, ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    make_users(ledger.url, 9)
    of_seven_days = ["backfill", "--backfill-days", "7", "--user-ids"]
    first = command(environment, tmp_path, *of_seven_days, ",".join(map(str, ids(1, 2, 3, 4))), *SLOW)
    with started(first):
        at_work(ledger, ONE_SENT)
        outcome = scheduler(*of_seven_days, ",".join(map(str, ids(4, 5, 6))))
        assert first.running
        assert outcome.status == 0
        assert "3 users added to the tick that is running since" in outcome.stdout
        assert first.wait(30) == 0
    assert served(ledger, broker) == Counter(ids(1, 2, 3, 4, 5, 6))
    assert ledger.row("SELECT state, jobs, leased_until FROM sync_runs") == {
        "state": "ENQUEUED",
        "jobs": 6,
        "leased_until": None,
    }
    assert ledger.rows("SELECT * FROM sync_locks") == []


def test_a_user_added_behind_the_cursor_of_a_daily_tick_gets_a_job(
    environment: dict[str, str], scheduler: Scheduler, ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    make_users(ledger.url, 4)
    first = command(environment, tmp_path, "daily", "--date", DAY, *SLOW)
    with started(first):
        at_work(ledger, f"planned_through IS NOT NULL AND {ONE_SENT}")
        ledger.execute(f"INSERT INTO users VALUES ('{UUID(int=1)}', 'behind-the-cursor')")
        assert scheduler("daily", "--date", DAY, "--json").report["outcome"] == "joined"
        assert first.wait(30) == 0
    assert served(ledger, broker, "daily") == Counter([*ids(1, 2, 3, 4), UUID(int=1)])


@pytest.mark.parametrize("when", ["planning", "dispatching", "the last batch"])
def test_who_joins_is_planned_wherever_the_first_tick_is(
    when: str, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 9)
    joined: list[Report] = []

    def join(report: Report) -> None:
        batches = {"planning": 1, "dispatching": 2, "the last batch": 3}[when]
        if report.batches == batches and not joined:
            if when == "planning":  # as if the planner were not yet through
                ledger.execute("UPDATE sync_runs SET state = 'PLANNING', planned_through = NULL")
            with context_at(utc_now) as own:
                joined.append(backfill(own, 8, 9))

    report = backfill(replace(context, on_progress=join), 1, 2, 3)
    assert [(one.outcome, one.exit_status, one.jobs_inserted) for one in joined] == [("joined", 0, 0)]
    assert (report.outcome, report.jobs_inserted, report.jobs_enqueued) == ("enqueued", 5, 5)
    assert served(ledger, broker) == Counter(ids(1, 2, 3, 8, 9))
    assert ledger.value("SELECT state FROM sync_runs") == "ENQUEUED"


def test_who_joins_while_the_first_tick_lets_go_is_planned(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    """The second tick's transaction has the lock's row when the first tick, which is through, wants it."""
    make_users(ledger.url, 9)
    with context_at(utc_now) as joining, ThreadPoolExecutor(1) as thread:
        with joining.database.transaction() as connection:
            lock_row = text("SELECT FROM sync_locks FOR UPDATE")
            held: list[bool] = []

            def hold_the_row(_: Report) -> None:
                if not held:
                    connection.execute(lock_row)
                    held.append(True)

            first = thread.submit(backfill, replace(context, on_progress=hold_the_row), 1)
            at_work(ledger, "state = 'ENQUEUED'")
            wait_until(lambda: ledger.value(WAITING), 10, "the first tick to wait for the second")
            until = joining.settings.lease.until(utc_now())
            run_id = ledger.value("SELECT run_id FROM sync_runs")
            chosen = selection_of(connection, ids(8))
            new = NewRun(run_id, KEY, Kind.BACKFILL, "scheduler.backfill", 7, chosen, None, None)
            assert runs.open_run(connection, new, utc_now(), until) is not None
        assert first.result(30).jobs_inserted == 2
    assert served(ledger, broker) == Counter(ids(1, 8))
    assert ledger.rows("SELECT * FROM sync_locks") == []


def test_reconcile_serves_who_joined_a_tick_that_died(
    environment: dict[str, str],
    clock: HandedClock,
    context: TickContext,
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    make_users(ledger.url, 9)
    of_seven_days = ["backfill", "--backfill-days", "7", "--partition-key", KEY]
    slow = ["--enqueue-batch-size", "1", "--enqueue-sleep-seconds", "600"]
    chosen = ",".join(map(str, ids(1, 2, 3)))
    with started(command(environment, tmp_path, *of_seven_days, "--user-ids", chosen, *slow)) as first:
        at_work(ledger, ONE_SENT)
        others = ",".join(map(str, ids(8, 9)))
        assert scheduler(*of_seven_days, "--user-ids", others, "--json").report["outcome"] == "joined"
        first.send(signal.SIGKILL)
        first.wait(10)
    # No later than a lease after the request.
    clock.now = ledger.value("SELECT leased_until FROM sync_runs")
    assert clock.now <= utc_now() + timedelta(seconds=context.settings.lease.seconds)
    assert reconciler.abandoned_runs(replace(context, clock=clock)) == 1
    assert served(ledger, broker) == Counter(ids(1, 2, 3, 8, 9))


def test_another_key_is_refused_and_nothing_of_it_stays(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 9)
    refused: list[Report] = []
    rows: list[dict[str, list[str]]] = []

    def ask(_: Report) -> None:
        rows.append(ledger.everything())
        with context_at(utc_now) as own:
            for days, key in ((7, "another"), (8, KEY)):
                refused.append(tick.backfill(own, options(8, 9, key=key, days=days)))
        rows.append(ledger.everything())

    assert backfill(replace(context, on_progress=ask), 1).jobs_inserted == 1
    assert [report.exit_status for report in refused] == [3, 3]
    assert "a tick of p is running" in str(refused[0].failure)
    assert "partition p belongs to a backfill run with backfill_days 7" in str(refused[1].failure)
    assert rows[0] == rows[1]
    assert served(ledger, broker) == Counter(ids(1))


def test_a_lock_that_is_taken_after_the_first_look_refuses_and_rolls_back(
    context: TickContext, ledger: Ledger
) -> None:
    make_users(ledger.url, 3)
    now = utc_now()
    lock = TickLock(context.database, BACKFILL_LOCK, KEY, utc_now, context.settings.lease)
    other = TickLock(context.database, BACKFILL_LOCK, "another", utc_now, context.settings.lease)
    with context.database.transaction() as connection:
        assert other.acquire(connection) is None
    before = ledger.everything()
    with (
        pytest.raises(Exception, match="a tick of another is running"),
        context.database.transaction() as c,
    ):
        chosen = selection_of(c, ids(1, 2))
        new = NewRun(chosen or uuid4(), KEY, Kind.BACKFILL, "scheduler.backfill", 7, chosen, None, None)
        assert runs.open_run(c, new, now, now) is not None
        lock.acquire(c)
    assert ledger.everything() == before


@pytest.mark.parametrize("chosen_first", [True, False])
def test_everyone_and_chosen_users_unite_to_everyone(
    chosen_first: bool, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 6)
    first, second = ([1], []) if chosen_first else ([], [1])
    joined: list[Report] = []

    def join(_: Report) -> None:
        if not joined:
            with context_at(utc_now) as own:
                joined.append(backfill(own, *second))

    assert backfill(replace(context, on_progress=join), *first).jobs_inserted == 6
    assert joined[0].outcome == "joined"
    assert served(ledger, broker) == Counter(ids(1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("locked", [True, False])
def test_ten_backfills_at_once_serve_everybody_whom_one_of_them_named(
    locked: bool, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 40)
    numbers = count(1)

    def one(own: TickContext) -> Report:
        first = next(numbers)
        settings = own.settings.model_copy(update={"scheduler_lock_enabled": locked})
        return backfill(replace(own, settings=settings), *range(first, first + 5))

    reports = at_once(context, 10, one)
    assert [report.exit_status for report in reports] == [0] * 10
    allowed = {"enqueued", "joined"} if locked else {"enqueued", "nothing_to_do"}
    assert {report.outcome for report in reports} <= allowed | {"nothing_to_do"}
    assert served(ledger, broker) == Counter(ids(*range(1, 15)))
    assert ledger.value("SELECT state FROM sync_runs") == "ENQUEUED"


def test_a_joined_tick_names_its_options_that_have_no_effect(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    ledger.execute(
        "INSERT INTO sync_locks (lock_id, holder, partition_key, acquired_at, leased_until) VALUES"
        f" ({BACKFILL_LOCK}, gen_random_uuid(), '{KEY}', now(), now() + interval '30 seconds')"
    )
    again = ["backfill", "--backfill-days", "7", "--partition-key", KEY, "--enqueue-batch-size", "7"]
    report = scheduler(*again, "--json").report
    assert report["unused_options"] == ["enqueue_batch_size"]
    assert "options of its own, not used: --enqueue-batch-size" in scheduler(*again).stdout


def test_a_tick_of_the_same_day_joins_with_its_slot(context: TickContext, ledger: Ledger) -> None:
    """So a day that is due again by a later slot does not stay due."""
    make_users(ledger.url, 2)
    joined: list[Report] = []

    def join(_: Report) -> None:
        if not joined:
            with context_at(utc_now) as own:
                slot = Slot(due_at=NOON, day=NOON.date())
                joined.append(tick.daily(own, DailyOptions(), slot))

    tick.daily(replace(context, on_progress=join), DailyOptions(date=NOON.date()))
    assert joined[0].outcome == "joined"
    assert ledger.value("SELECT slot FROM sync_runs") == NOON
