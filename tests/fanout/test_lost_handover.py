"""MAX_QUEUE_DEPTH: the message that continues a run behind a full queue is lost, reconcile replaces it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from tests.support.command_line import Outcome
from tests.support.contexts import HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import celery, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher_requests import TaskRequests
from worker_scheduler.maintenance import reconciler
from worker_scheduler.publisher.redis_broker import RedisBroker

ROOT = Path(__file__).resolve().parents[2]
DEPTH, BATCH, USERS = 25, 10, 200


@pytest.fixture
def context(deployed: None, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[TickContext]:
    """As in a task, on a clock that stands still: no lease of a tick runs out."""
    monkeypatch.setenv("MAX_QUEUE_DEPTH", str(DEPTH))
    monkeypatch.setenv("ENQUEUE_BATCH_SIZE", str(BATCH))
    clock = HandedClock(utc_now())
    ledger.execute(f"UPDATE sync_origin SET since = '{clock.now}'")
    with context_at(clock) as context:
        yield replace(context, dispatcher_requests=TaskRequests(context.dispatch_sender, context.broker))


def handed_over(context: TickContext, ledger: Ledger, broker: Broker) -> str:
    """Fills the queue with a run, which is handed over; returns the id of that message."""
    make_users(ledger.url, USERS)
    tick.daily(context, DailyOptions())
    (message_id,) = handovers(broker)
    assert broker.count("daily") == 31
    return message_id


def handovers(broker: Broker) -> list[str]:
    return [m.task_id for m in broker.messages("daily") if m.headers["task"] == "scheduler.dispatch"]


def take_out(broker: Broker, message_id: str) -> bytes:
    """Removes one message from the queue; returns its text."""
    key = f"{broker.key_prefix}daily"
    with Redis.from_url(broker.url) as redis:
        (text,) = [text for text in redis.lrange(key, 0, -1) if message_id.encode() in text]
        redis.lrem(key, 1, text)
    return bytes(text)


def lose_with_note(message_id: str, ledger: Ledger, broker: Broker) -> None:
    """Removes a handover, and the note that the run has it."""
    take_out(broker, message_id)
    partition_key = ledger.value("SELECT partition_key FROM sync_runs")
    with Redis.from_url(broker.url) as redis:
        assert redis.delete(f"{broker.key_prefix}worker_scheduler:baton:{partition_key}") == 1


@pytest.mark.parametrize("times", [1, 4])
def test_a_lost_handover_is_replaced(
    times: int, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    lost = handed_over(context, ledger, broker)
    take_out(broker, lost)
    assert reconciler.reconcile(context).put_right["handovers"] == 1
    (new,) = handovers(broker)
    assert new != lost
    for _ in range(times):
        assert reconciler.reconcile(context).put_right["handovers"] == 0
    assert handovers(broker) == [new]


def test_a_lost_handover_is_replaced_by_the_command(
    context: TickContext, scheduler: Callable[..., Outcome], ledger: Ledger, broker: Broker
) -> None:
    take_out(broker, handed_over(context, ledger, broker))
    assert scheduler("reconcile", "--json").report["handovers"] == 1
    assert len(handovers(broker)) == 1


def test_passes_at_once_replace_a_handover_by_few(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    """Usually by one; two passes that are equally fast may send two, which share the work."""
    take_out(broker, handed_over(context, ledger, broker))
    at_once(context, 4, reconciler.handovers)
    assert 1 <= len(handovers(broker)) <= 4
    found = len(handovers(broker))
    assert sum(at_once(context, 4, reconciler.handovers)) == 0
    assert len(handovers(broker)) == found


@pytest.mark.parametrize(
    "where", ["queue", "front of a long queue", "end of a long queue", "priority", "unacked"]
)
def test_a_handover_that_waits_or_is_with_a_worker_is_left_alone(
    where: str, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    message_id = handed_over(context, ledger, broker)
    queue = f"{broker.key_prefix}daily"
    with Redis.from_url(broker.url) as redis:
        if where == "front of a long queue":
            redis.rpush(queue, *[b"{}"] * 2500)
        elif where == "end of a long queue":
            redis.lpush(queue, *[b"\xff"] * 2500)
        elif where == "priority":
            redis.lpush(f"{queue}\x06\x163", take_out(broker, message_id))
        elif where == "unacked":
            text = take_out(broker, message_id)
            redis.hset(f"{broker.key_prefix}unacked", "tag", b"[" + text + b', "", "daily"]')
    before = broker.count("daily")
    assert reconciler.reconcile(context).put_right["handovers"] == 0
    assert broker.count("daily") == before


def test_a_handover_that_a_worker_is_just_taking_is_left_alone(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    """Between the queue and `unacked` it is nowhere; the second look finds it."""
    message_id = handed_over(context, ledger, broker)
    text = take_out(broker, message_id)

    def arrive(_seconds: float) -> None:
        with Redis.from_url(broker.url) as redis:
            redis.hset(f"{broker.key_prefix}unacked", "tag", b"[" + text + b', "", "daily"]')

    assert reconciler.handovers(replace(context, pause=arrive)) == 0
    assert context.broker.handover(ledger.value("SELECT partition_key FROM sync_runs")) == message_id


def test_a_queue_too_long_to_search_holds_the_handover(
    context: TickContext, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = handed_over(context, ledger, broker)
    monkeypatch.setattr("worker_scheduler.publisher.message_ids.CHUNK", 5)
    monkeypatch.setattr("worker_scheduler.publisher.redis_broker._LONGEST_SEARCH", 4)
    take_out(broker, message_id)
    assert context.broker.holds("daily", message_id)
    assert reconciler.handovers(context) == 0
    with Redis.from_url(broker.url) as redis:
        redis.ltrim(f"{broker.key_prefix}daily", 0, 18)
    assert reconciler.handovers(context) == 1


def test_a_handover_that_was_lost_with_the_data_is_replaced(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    handed_over(context, ledger, broker)
    broker.lose_everything()
    assert reconciler.reconcile(context).put_right["handovers"] == 1
    assert len(handovers(broker)) == 1
    for _ in range(3):
        assert reconciler.reconcile(context).put_right["handovers"] == 0
    assert len(handovers(broker)) == 1


def test_a_handover_that_was_lost_with_its_note_is_replaced(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    """As in a failover to a replica that lags: the epoch is there, the newest keys are not."""
    lose_with_note(handed_over(context, ledger, broker), ledger, broker)
    assert reconciler.reconcile(context).put_right["handovers"] == 1
    assert len(handovers(broker)) == 1
    for _ in range(3):
        assert reconciler.reconcile(context).put_right["handovers"] == 0
    assert len(handovers(broker)) == 1


def test_a_run_whose_command_waits_for_space_gets_no_handover(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    lose_with_note(handed_over(context, ledger, broker), ledger, broker)
    until = context.settings.lease.until(context.clock())
    ledger.execute(f"UPDATE sync_runs SET leased_until = '{until}'")
    assert reconciler.reconcile(context).put_right["handovers"] == 0
    assert handovers(broker) == []


@pytest.mark.parametrize("note", [None, b"5", b"", b"\xff"])
def test_a_handover_whose_note_cannot_be_read_is_replaced(
    note: bytes | None, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    message_id = handed_over(context, ledger, broker)
    take_out(broker, message_id)
    partition_key = ledger.value("SELECT partition_key FROM sync_runs")
    key = f"{broker.key_prefix}worker_scheduler:baton:{partition_key}"
    with Redis.from_url(broker.url) as redis:
        redis.delete(key)
        if note is None:
            redis.hset(key, "x", "5")
        else:
            redis.set(key, note)
    assert reconciler.reconcile(context).put_right["handovers"] == 1
    assert len(handovers(broker)) == 1
    assert RedisBroker(broker.url, broker.key_prefix).handover(partition_key) == handovers(broker)[0]


@pytest.mark.slow
def test_workers_go_on_after_the_pass_that_replaced_a_handover(
    context: TickContext,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    """One pass only: the rest is sent by the workers that drain the queue."""
    take_out(broker, handed_over(context, ledger, broker))
    assert reconciler.reconcile(context).put_right["handovers"] == 1
    variables = {
        **{"PYTHONPATH": str(ROOT), "SYNC_HANDLER": "tests.support.handlers:complete"},
        **{"MAX_QUEUE_DEPTH": str(DEPTH), "ENQUEUE_BATCH_SIZE": str(BATCH), "ENQUEUE_SLEEP_SECONDS": "0"},
    }
    pool = celery(
        environment | variables,
        tmp_path / "worker.log",
        *("worker", "-Q", "daily", "--pool", "solo", "--without-gossip", "--without-mingle"),
    )
    with started(pool):
        wait_until(lambda: ledger.states() == {"COMPLETED": USERS}, 60, "every job COMPLETED")
