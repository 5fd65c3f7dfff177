"""Of the messages that ask for a reconcile pass, one makes it, whatever the hosts' clocks say."""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.contexts import INSTANT, NOON, HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import started, worker_of
from tests.support.waiting import wait_until
from worker_scheduler import logs
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler

ROOT = Path(__file__).resolve().parents[2]
SECOND = timedelta(seconds=1)
INTERVAL = 60 * SECOND


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, ledger: Ledger, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


def makes_a_pass(context: TickContext) -> bool:
    return reconciler.reconcile_if_due(context) is not None


def test_one_message_per_interval_makes_a_pass_each(context: TickContext, clock: HandedClock) -> None:
    """Even if every second one waits in the queue for almost half an interval."""
    for number in range(6):
        clock.now = NOON + number * INTERVAL + (number % 2) * (INTERVAL / 2 - INSTANT)
        assert makes_a_pass(context)


@pytest.mark.parametrize(("since", "makes"), [(30 * SECOND, True), (30 * SECOND - INSTANT, False)])
def test_half_an_interval_after_a_pass_another_one_may_begin(
    since: timedelta, makes: bool, context: TickContext, clock: HandedClock
) -> None:
    assert makes_a_pass(context)
    clock.forward(since)
    assert makes_a_pass(context) == makes


@pytest.mark.parametrize(
    ("takes", "rest"),
    [
        (10 * INTERVAL, INTERVAL / 2),
        (0.9 * INTERVAL, INTERVAL / 2),
        (0.4 * INTERVAL, 0.4 * INTERVAL),
        (0.3 * INTERVAL, 0.3 * INTERVAL),
    ],
)
def test_a_long_pass_is_followed_by_a_rest(
    takes: timedelta,
    rest: timedelta,
    context: TickContext,
    clock: HandedClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a worker of all queues, which serves `scheduler` first, would never take a job."""

    def long_rule(_: TickContext) -> int:
        clock.forward(takes)
        return 0

    monkeypatch.setattr(reconciler, "RULES", (long_rule,))
    assert makes_a_pass(context)
    for _ in range(3):
        assert not makes_a_pass(context)
        clock.forward(rest - INSTANT)
        assert not makes_a_pass(context)
        clock.forward(INSTANT)
        assert makes_a_pass(context)


def test_messages_that_come_at_once_make_one_pass(context: TickContext, clock: HandedClock) -> None:
    assert at_once(context, 4, makes_a_pass).count(True) == 1
    clock.forward(INTERVAL)
    assert at_once(context, 4, makes_a_pass).count(True) == 1


def test_a_pass_that_was_killed_does_not_stop_the_next_one(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    assert makes_a_pass(context)
    ledger.execute("UPDATE sync_passes SET ended_at = NULL")
    clock.forward(INTERVAL)
    assert makes_a_pass(context)


def test_a_pass_in_the_future_stops_nothing(
    context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    """The clock of Postgres was ahead, and was set back."""
    clock.forward(timedelta(days=30))
    assert makes_a_pass(context)
    clock.forward(-timedelta(days=30))
    assert makes_a_pass(context)
    assert not makes_a_pass(context)


def test_the_command_always_makes_a_pass(
    scheduler: Callable[..., Outcome], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.execute("INSERT INTO sync_passes (name, begun_at, ended_at) VALUES ('reconcile', now(), now())")
    for _ in range(2):
        ledger.execute(
            "INSERT INTO sync_locks (lock_id, holder, partition_key, acquired_at, leased_until)"
            " VALUES (1, gen_random_uuid(), 'p', now() - interval '1 hour', now() - interval '1 hour')"
        )
        assert scheduler("reconcile", "--json").report["expired_locks"] == 1


def test_a_message_that_makes_no_pass_logs_nothing_at_info(
    context: TickContext, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("INFO")
    assert makes_a_pass(context)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert not makes_a_pass(context)
    assert caplog.records == []


def test_a_heap_of_old_messages_makes_one_pass(
    environment: dict[str, str], ledger: Ledger, broker: Broker, deployed: None, tmp_path: Path
) -> None:
    """As after a night without workers."""
    from worker_scheduler import app

    for _ in range(40):
        app.send_task("scheduler.reconcile", queue="scheduler")
    ledger.execute(
        "CREATE TABLE begun (at timestamptz)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO begun VALUES (new.begun_at); RETURN NULL; END $$",
        "CREATE TRIGGER t AFTER INSERT OR UPDATE OF begun_at ON sync_passes"
        " FOR EACH ROW WHEN (new.name = 'reconcile') EXECUTE FUNCTION note()",
    )
    with started(worker_of(environment, tmp_path / "worker.log", "scheduler")) as worker:
        wait_until(lambda: not broker.counts() and not broker.unacknowledged(), 60, "an empty queue")
        assert worker.running
    assert ledger.value("SELECT count(*) FROM begun") == 1
    begun_at: datetime = ledger.value("SELECT at FROM begun")
    assert datetime.now(UTC) - begun_at < timedelta(minutes=1)
