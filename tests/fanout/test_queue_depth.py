"""MAX_QUEUE_DEPTH: dispatch waits while the queue is full, and continues as workers drain it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from tests.support.contexts import HandedClock, Requests, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import celery, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions, parse_backfill, parse_daily
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher_requests import TaskRequests
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance import reconciler
from worker_scheduler.outcome import Outcome
from worker_scheduler.publisher.dispatch_message import DispatchSender
from worker_scheduler.publisher.redis_broker import RedisBroker

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-11-23"
BATCH = 10
DEEPEST = 25
USERS = 200
PAUSE_SECONDS = 0.005


class Workers:
    """Take and acknowledge messages while the test lets them, and note how deep the queue was."""

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
    """A short one, so that a test need not wait long for a dispatcher to look again."""
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
        ticking = thread.submit(daily, context)
        # The fleet is stopped: 25 is reached with the third batch, and the fourth waits.
        wait_until(lambda: broker.count("daily") >= DEEPEST, 30, "a full queue")
        leased_until = ledger.value("SELECT leased_until FROM sync_runs")
        wait_until(
            lambda: ledger.value("SELECT leased_until FROM sync_runs") > leased_until, 30, "a heartbeat"
        )
        assert broker.count("daily") == 30
        with workers.at_work():
            report = ticking.result(60)
            wait_until(lambda: not broker.counts(), 30, "an empty queue")
    assert (report.outcome, report.jobs_enqueued, report.enqueue_failures) == (Outcome.ENQUEUED, USERS, 0)
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
    """kombu has one list per priority step."""
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
    assert daily(context).outcome is Outcome.NOTHING_TO_DO


def jobs_in(broker: Broker) -> int:
    return sum(m.headers["task"] == "sync_user" for m in broker.messages("daily"))


def test_reconcile_never_waits_and_sends_the_rest_when_there_is_space(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, USERS)
    clock = HandedClock(utc_now())
    ledger.execute(f"UPDATE sync_origin SET since = '{clock.now}'")
    in_a_task = replace(context, clock=clock, dispatcher_requests=Requests(waits=False))
    assert daily(in_a_task).enqueue_failures == USERS - 30
    sent = jobs_in(broker)
    assert sent == 30
    while sent < USERS:
        assert jobs_in(broker) == min(30, USERS - sent + 30)
        broker.lose_queue("daily")
        clock.forward(timedelta(seconds=2))
        assert reconciler.reconcile(replace(in_a_task, dispatcher_requests=Requests())).errors == []
        sent += jobs_in(broker)
    assert sent == USERS


class Watch:
    """Looks at the queue of jobs all the time, and notes the greatest depth."""

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
    ("depth", "processes", "triggers"), [(DEEPEST, 1, 10), (DEEPEST, 4, 1), (1, 1, 1), (1, 4, 10)]
)
@pytest.mark.slow
def test_the_workers_that_drain_a_full_queue_are_not_held_by_the_tick(
    depth: int,
    processes: int,
    triggers: int,
    deployed: None,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    """One pool runs ticks, extra dispatchers and jobs, and reconcile never runs."""
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

        for _ in range(triggers):
            app.send_task("scheduler.daily_tick", kwargs={"date": DAY}, queue="scheduler")
        wait_until(lambda: ledger.states() == {"COMPLETED": USERS}, 60, "every job COMPLETED")
        wait_until(lambda: broker.unacknowledged() == 0 and not broker.counts(), 30, "no message left")
        wait_until(lambda: ledger.value("SELECT state FROM sync_runs") == "ENQUEUED", 30, "a closed run")
    # A batch of each dispatcher, and the handover of the batches that the queue had no space for.
    assert watch.deepest <= depth - 1 + processes * (BATCH + 1)


def test_a_run_is_handed_over_once(context: TickContext, broker: Broker) -> None:
    state = context.broker
    assert not state.take_handover("daily:1", "first")
    assert state.reserve_handover("daily:1", "first")
    assert not state.reserve_handover("daily:1", "second")
    assert state.reserve_handover("daily:2", "another run's")
    assert not state.take_handover("daily:1", "second")
    assert state.take_handover("daily:1", "first")
    assert not state.take_handover("daily:1", "first")  # delivered a second time
    assert state.reserve_handover("daily:1", "second")


def test_a_tick_whose_run_cannot_be_handed_over_does_not_fail(context: TickContext, ledger: Ledger) -> None:
    """Its batches are planned, and reconcile dispatches those that are left."""
    from worker_scheduler import app

    make_users(ledger.url, USERS)
    nowhere = RedisBroker("redis://127.0.0.1:1/0", "")
    report = daily(replace(context, dispatcher_requests=TaskRequests(DispatchSender(app), nowhere)))
    assert (report.outcome, report.jobs_inserted, report.jobs_enqueued) == (Outcome.ENQUEUED, USERS, 30)


class Unsendable(DispatchSender):
    """A broker that takes no message of `scheduler.dispatch`."""

    def send(self, partition_key: str, queue: str, message_id: str) -> None:
        raise StoreUnavailable("the broker is away")


def test_a_handover_that_could_not_be_sent_is_taken_back(context: TickContext, ledger: Ledger) -> None:
    """Otherwise the run could not be handed over for a day."""
    from worker_scheduler import app

    make_users(ledger.url, USERS)
    daily(replace(context, dispatcher_requests=TaskRequests(Unsendable(app), context.broker)))
    partition_key = ledger.value("SELECT partition_key FROM sync_runs")
    assert context.broker.reserve_handover(partition_key, "another message")


def test_reconcile_hands_a_run_over_once(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """Each pass must not put one more message into a queue that stays full."""
    make_users(ledger.url, USERS)
    requests = Requests(waits=False)
    as_in_a_task = replace(context, dispatcher_requests=requests)
    tick.daily(as_in_a_task, parse_daily({"date": DAY}))
    assert requests.continued == [(f"daily:{DAY}", "daily")]
    for _ in range(3):
        assert reconciler.reconcile(as_in_a_task).errors == []
    assert requests.continued == [(f"daily:{DAY}", "daily")]
    assert jobs_in(broker) == 30
    assert broker.counts() == {"daily": 31}


def test_a_tick_that_found_space_for_all_hands_nothing_over(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, DEEPEST)
    requests = Requests(waits=False)
    as_in_a_task = replace(context, dispatcher_requests=requests)
    daily(as_in_a_task)
    assert requests.continued == []


def test_due_jobs_fill_a_queue_no_further(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """They pause between steps, as dispatch does. A full queue does not stop the other queue."""
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
