"""MAX_QUEUE_DEPTH: dispatch waits while the queue is deep, and goes on as workers drain it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from tests.support.contexts import HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import celery, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler import reconciler, tick
from worker_scheduler.clock import utc_now
from worker_scheduler.context import TickContext
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.options import DailyOptions, parse_backfill, parse_daily
from worker_scheduler.publisher.broker import RedisBroker
from worker_scheduler.report import Report

ROOT = Path(__file__).resolve().parents[1]
DAY = "2026-11-23"
BATCH = 10
DEEPEST = 25
USERS = 200
PAUSE_SECONDS = 0.005


class Workers:
    """Take messages and acknowledge them, when the test lets them; note how deep the queue was."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stopped = False
        self.deepest = 0
        self.taken = 0

    def drain(self) -> None:
        with Redis.from_url(self._broker.url) as redis:
            while not self._stopped:
                self.deepest = max(self.deepest, redis.llen(f"{self._broker.key_prefix}daily"))
                self.taken += redis.rpop(f"{self._broker.key_prefix}daily") is not None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as thread:
            draining = thread.submit(self.drain)
            try:
                yield
            finally:
                self._stopped = True
                draining.result(30)


@pytest.fixture
def context(deployed: None, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[TickContext]:
    monkeypatch.setenv("MAX_QUEUE_DEPTH", str(DEEPEST))
    monkeypatch.setenv("ENQUEUE_BATCH_SIZE", str(BATCH))
    monkeypatch.setenv("LEASE_SECONDS", "1")
    with context_at(utc_now) as context:
        yield replace(context, pause=pause)


def pause(_seconds: float) -> None:
    """So short that a test need not wait for a dispatcher to look again."""
    from time import sleep

    sleep(PAUSE_SECONDS)


def daily(context: TickContext) -> Report:
    return tick.daily(context, DailyOptions())


def test_dispatch_waits_for_workers_and_goes_on(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, USERS)
    workers = Workers(broker)
    with ThreadPoolExecutor(1) as thread:
        ringing = thread.submit(daily, context)
        # The fleet is stopped: 25 is reached with the third batch, and the fourth waits.
        wait_until(lambda: broker.count("daily") >= DEEPEST, 30, "a full queue")
        leased_until = ledger.value("SELECT leased_until FROM sync_runs")
        wait_until(
            lambda: ledger.value("SELECT leased_until FROM sync_runs") > leased_until, 30, "a heartbeat"
        )
        assert broker.count("daily") == 30
        with workers.at_work():
            report = ringing.result(60)
            wait_until(lambda: not broker.counts(), 30, "an empty queue")
    assert (report.outcome, report.jobs_enqueued, report.enqueue_failures) == ("enqueued", USERS, 0)
    assert workers.taken == USERS
    assert workers.deepest <= DEEPEST - 1 + BATCH


def test_several_dispatchers_keep_the_bound_within_a_batch_each(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, USERS)
    unlocked = context.settings.model_copy(update={"scheduler_lock_enabled": False})
    workers = Workers(broker)
    with workers.at_work():
        reports = at_once(replace(context, settings=unlocked), 4, daily)
        wait_until(lambda: not broker.counts(), 30, "an empty queue")
    assert sum(report.jobs_enqueued for report in reports) == workers.taken == USERS
    assert workers.deepest <= DEEPEST - 1 + 4 * BATCH


def test_what_workers_hold_counts(context: TickContext, broker: Broker) -> None:
    with Redis.from_url(broker.url) as redis:
        redis.lpush(f"{broker.key_prefix}daily", "waiting")
        for queue in ("daily", "daily", "backfill"):
            redis.hset(f"{broker.key_prefix}unacked", str(uuid4()), json.dumps([{}, "", queue]))
    assert [context.broker.depth(kind.value) for kind in Kind] == [3, 1]


def test_messages_with_a_priority_count(context: TickContext, broker: Broker) -> None:
    """kombu has a list for each step of it."""
    from worker_scheduler import app

    for priority in (0, 3, 6, 9):
        app.send_task("anything", queue="daily", priority=priority)
    assert broker.counts() == {"daily": 1}
    assert context.broker.depth("daily") == 4


def test_with_nothing_to_send_a_full_queue_stops_nobody(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, DEEPEST)
    assert daily(context).jobs_enqueued == DEEPEST
    assert broker.count("daily") == DEEPEST
    assert daily(context).outcome == "nothing_to_do"


def test_reconcile_never_waits_and_sends_the_rest_when_there_is_room(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, USERS)
    clock = HandedClock(utc_now())
    ledger.execute(f"UPDATE sync_origin SET since = '{clock.now}'")
    impatient = replace(context, clock=clock, patient=False)
    assert daily(impatient).enqueue_failures == USERS - 30
    sent = 30
    while sent < USERS:
        assert broker.count("daily") == min(30, USERS - sent + 30)
        broker.lose_queue("daily")
        clock.forward(timedelta(seconds=2))
        assert reconciler.reconcile(replace(impatient, patient=True)).errors == []
        sent += broker.count("daily")
    assert sent == USERS


class Watch:
    """Looks at the queue of jobs all the time, and notes how deep it was at most."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stopped = False
        self.deepest = 0

    def look(self) -> None:
        with Redis.from_url(self._broker.url) as redis:
            while not self._stopped:
                self.deepest = max(self.deepest, redis.llen(f"{self._broker.key_prefix}daily"))

    @contextmanager
    def looking(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as thread:
            watching = thread.submit(self.look)
            try:
                yield
            finally:
                self._stopped = True
                watching.result(30)


@pytest.mark.parametrize(
    ("depth", "processes", "rings"), [(DEEPEST, 1, 10), (DEEPEST, 4, 1), (1, 1, 1), (1, 4, 10)]
)
def test_the_workers_that_drain_a_full_queue_are_not_held_by_the_tick(
    depth: int,
    processes: int,
    rings: int,
    deployed: None,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    """One pool does ticks, help and jobs, and nobody rings reconcile."""
    make_users(ledger.url, USERS)
    variables = {
        **{"PYTHONPATH": str(ROOT), "SYNC_HANDLER": "tests.support.handlers:complete"},
        **{"MAX_QUEUE_DEPTH": str(depth), "ENQUEUE_BATCH_SIZE": str(BATCH), "ENQUEUE_SLEEP_SECONDS": "0"},
        "DISPATCH_CONCURRENCY": str(processes),
    }
    pool = celery(
        environment | variables,
        tmp_path / "worker.log",
        *("worker", "-Q", "scheduler,daily,backfill", "--concurrency", str(processes)),
        *("--without-gossip", "--without-mingle", "--loglevel", "INFO"),
    )
    watch = Watch(broker)
    with started(pool), watch.looking():
        pool.wait_for_log("ready.")
        from worker_scheduler import app

        for _ in range(rings):
            app.send_task("scheduler.daily_tick", kwargs={"date": DAY}, queue="scheduler")
        wait_until(lambda: ledger.states() == {"COMPLETED": USERS}, 60, "every job COMPLETED")
        wait_until(lambda: broker.unacknowledged() == 0 and not broker.counts(), 30, "no message left")
        wait_until(lambda: ledger.value("SELECT state FROM sync_runs") == "ENQUEUED", 30, "a closed run")
    # A batch of each dispatcher, and the message by which each has passed on what it had no room for.
    assert watch.deepest <= depth - 1 + processes * (BATCH + 1)


def test_a_run_has_one_baton(context: TickContext, broker: Broker) -> None:
    state = context.broker
    assert not state.take_baton("daily:1", "first")
    assert state.note_baton("daily:1", "first")
    assert not state.note_baton("daily:1", "second")
    assert state.note_baton("daily:2", "another run's")
    assert not state.take_baton("daily:1", "second")
    assert state.take_baton("daily:1", "first")
    assert not state.take_baton("daily:1", "first")  # delivered a second time
    assert state.note_baton("daily:1", "second")


def test_a_tick_whose_run_cannot_be_passed_on_does_not_fail(context: TickContext, ledger: Ledger) -> None:
    """Its batches are planned, and what is left of them is reconcile's."""
    from worker_scheduler import wiring

    make_users(ledger.url, USERS)
    nowhere = RedisBroker("redis://127.0.0.1:1/0", "")
    report = daily(replace(context, patient=False, pass_on=partial(wiring.pass_on, nowhere)))
    assert (report.outcome, report.jobs_inserted, report.jobs_enqueued) == ("enqueued", USERS, 30)


def test_reconcile_passes_nothing_on(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """Else each pass would leave one message more in a queue that stays full."""
    make_users(ledger.url, USERS)
    passed_on: list[tuple[str, str]] = []
    as_in_a_task = replace(context, patient=False, pass_on=lambda *it: passed_on.append(it))
    tick.daily(as_in_a_task, parse_daily({"date": DAY}))
    assert passed_on == [(f"daily:{DAY}", "daily")]
    for _ in range(3):
        assert reconciler.reconcile(as_in_a_task).errors == []
    assert passed_on == [(f"daily:{DAY}", "daily")]
    assert broker.counts() == {"daily": 30}


def test_a_tick_that_found_room_for_all_passes_nothing_on(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, DEEPEST)
    passed_on: list[tuple[str, str]] = []
    as_in_a_task = replace(context, patient=False, pass_on=lambda *it: passed_on.append(it))
    daily(as_in_a_task)
    assert passed_on == []


def test_due_jobs_fill_a_queue_no_further(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """And they pause between steps, as dispatch does. A full queue says nothing of the other."""
    make_users(ledger.url, DEEPEST)
    daily(context)
    assert tick.backfill(context, parse_backfill({"backfill_days": 7})).jobs_enqueued == DEEPEST
    broker.lose_queue("daily")
    ledger.execute("UPDATE sync_jobs SET not_before = now()")
    assert broker.counts() == {"backfill": DEEPEST}
    paused: list[float] = []
    settings = context.settings.model_copy(update={"enqueue_sleep_seconds": 0.7, "max_queue_depth": 15})
    bounded = replace(context, settings=settings, pause=paused.append)
    assert reconciler.due_jobs(bounded) == 2 * BATCH
    assert broker.counts() == {"daily": 2 * BATCH, "backfill": DEEPEST}
    assert paused == [0.7, 0.7]
    broker.lose_queue("daily")
    broker.lose_queue("backfill")
    assert reconciler.due_jobs(bounded) == DEEPEST - 2 * BATCH + 2 * BATCH
    assert broker.counts() == {"daily": DEEPEST - 2 * BATCH, "backfill": 2 * BATCH}
