"""Two reconcilers with different brokers over one ledger: they do not send each other's messages again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from redis import Redis

from tests.maintenance.situations import DAY, GRACE, KEY, each_once, enqueue, sent
from tests.support.command_line import Outcome
from tests.support.contexts import HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler
from worker_scheduler.maintenance.reconciler import Reconciliation
from worker_scheduler.publisher.redis_broker import RedisBroker
from worker_scheduler.publisher.redis_bulk import RedisBulkPublisher

INTERVAL = timedelta(seconds=60)
SILENCE = timedelta(minutes=10)
USERS = 25


@pytest.fixture
def elsewhere(broker: Broker) -> Iterator[Broker]:
    """Another broker: on the same server, under another key prefix."""
    other = Broker(broker.url, f"other-{uuid4().hex}:")
    yield other
    other.lose_everything()


@pytest.fixture
def there(context: TickContext, elsewhere: Broker) -> TickContext:
    """The context of a process that has the other broker."""
    from worker_scheduler import app

    return replace(
        context,
        broker=RedisBroker(elsewhere.url, elsewhere.key_prefix),
        publisher=RedisBulkPublisher(app, elsewhere.url, elsewhere.key_prefix),
    )


def turn_errors(result: Reconciliation) -> list[str]:
    assert all(isinstance(error, ConfigurationError) for error in result.errors)
    return [str(error) for error in result.errors if "two brokers in turn" in str(error)]


@pytest.mark.parametrize("step", [INTERVAL, INTERVAL / 2, timedelta(0)], ids=str)
def test_two_brokers_in_turn_are_noticed_and_nothing_is_sent_again(
    step: timedelta,
    context: TickContext,
    there: TickContext,
    ledger: Ledger,
    broker: Broker,
    elsewhere: Broker,
    clock: HandedClock,
) -> None:
    job_ids = enqueue(context, ledger, USERS)
    assert reconciler.reconcile(context).errors == []
    errors = []
    for own in (there, context, there, context, there, there, context, context):
        clock.forward(step)
        result = reconciler.reconcile(own)
        errors.append(turn_errors(result))
        # The other rules go on.
        assert {"due_jobs", "lost_messages", "finished_runs"} <= set(result.put_right)
        if result.errors:
            assert result.exit_status == 2
    # The first pass there cannot know it, and waits.
    assert [len(found) for found in errors] == [0] + [1] * 7
    for (error,) in errors[1:]:
        assert context.broker.place in error
        assert there.broker.place in error
    assert sent(broker) == each_once(job_ids)
    assert elsewhere.counts() == {}


def test_an_empty_queue_of_the_other_broker_does_not_mean_lost_messages(
    context: TickContext,
    there: TickContext,
    ledger: Ledger,
    broker: Broker,
    elsewhere: Broker,
    clock: HandedClock,
) -> None:
    job_ids = enqueue(context, ledger, USERS)
    clock.forward(2 * GRACE)
    reconciler.reconcile(context)
    for own in (there, context, there, context):
        clock.forward(INTERVAL)
        assert reconciler.reconcile(own).put_right["lost_messages"] == 0
    assert sent(broker) == each_once(job_ids)
    assert elsewhere.counts() == {}


def test_a_new_broker_gets_everything_once_the_earlier_one_is_silent(
    context: TickContext,
    there: TickContext,
    ledger: Ledger,
    broker: Broker,
    elsewhere: Broker,
    clock: HandedClock,
) -> None:
    """A new URL: three intervals after the last pass with the old one at the latest."""
    job_ids = enqueue(context, ledger, USERS)
    reconciler.reconcile(context)
    clock.forward(2 * INTERVAL)
    assert reconciler.reconcile(there).errors == []
    assert elsewhere.counts() == {}
    clock.forward(INTERVAL)
    for _ in range(3):
        assert reconciler.reconcile(there).errors == []
        assert sent(elsewhere) == each_once(job_ids)
        clock.forward(INTERVAL)


def test_a_broker_seen_before_the_clock_was_set_back_is_not_waited_for(
    context: TickContext, there: TickContext, ledger: Ledger, elsewhere: Broker, clock: HandedClock
) -> None:
    """Postgres' clock was a month ahead."""
    job_ids = enqueue(context, ledger, USERS)
    reconciler.reconcile(context)
    ledger.execute(
        "UPDATE sync_broker_epochs SET seen_last = seen_last + interval '30 days',"
        " reconciled_at = reconciled_at + interval '30 days', returned_at = seen_last + interval '30 days'"
    )
    clock.forward(3 * INTERVAL)
    assert reconciler.reconcile(there).errors == []
    assert sent(elsewhere) == each_once(job_ids)


def test_a_new_broker_that_no_pass_has_overlapped_gets_everything_at_once(
    context: TickContext, there: TickContext, ledger: Ledger, elsewhere: Broker
) -> None:
    job_ids = enqueue(context, ledger, USERS)
    assert reconciler.reconcile(there).errors == []
    assert sent(elsewhere) == each_once(job_ids)


def test_what_waits_is_sent_when_one_of_two_brokers_is_silent_again(
    context: TickContext,
    there: TickContext,
    ledger: Ledger,
    broker: Broker,
    elsewhere: Broker,
    clock: HandedClock,
) -> None:
    """A wrong URL, corrected: what was sent there is sent here, not at once but at last."""
    reconciler.reconcile(context)
    make_users(ledger.url, USERS)
    tick.daily(there, DailyOptions(date=DAY))
    job_ids = [job["job_id"] for job in ledger.jobs(KEY)]
    clock.forward(INTERVAL)
    result = reconciler.reconcile(context)
    assert len(turn_errors(result)) == 1
    assert broker.counts() == {}
    clock.forward(SILENCE)
    for _ in range(2):
        assert reconciler.reconcile(context).errors == []
        assert sent(broker) == each_once(job_ids)
        clock.forward(INTERVAL)


def test_a_flush_and_a_restored_dump_are_no_second_broker(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """At one place the data that were there are gone: they are sent again in the same pass."""
    job_ids = enqueue(context, ledger, USERS)
    reconciler.reconcile(context)
    key = f"{broker.key_prefix}worker_scheduler:epoch"
    with Redis.from_url(broker.url) as redis:
        first = redis.get(key)
        broker.lose_everything()
        assert reconciler.reconcile(context).errors == []
        assert sent(broker) == each_once(job_ids)
        # An earlier dump: the old epoch, and no message.
        clock.forward(INTERVAL)
        broker.lose_everything()
        redis.set(key, first)
    for _ in range(3):
        assert reconciler.reconcile(context).errors == []
        assert sent(broker) == each_once(job_ids)
        clock.forward(INTERVAL)


def test_two_servers_behind_one_address_are_noticed_at_the_second_return(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """A name that leads to two servers in turn. Each of them has got everything once by then."""
    job_ids = enqueue(context, ledger, USERS)
    reconciler.reconcile(context)
    key = f"{broker.key_prefix}worker_scheduler:epoch"
    epochs = [str(uuid4()), str(uuid4())]
    errors = []
    with Redis.from_url(broker.url) as redis:
        for turn in range(8):
            redis.set(key, epochs[turn % 2])
            errors.append(len(turn_errors(reconciler.reconcile(context))))
            clock.forward(INTERVAL)
    assert errors == [0, 0, 0, 1, 1, 1, 1, 1]
    generations = ledger.value("SELECT max(generation) FROM sync_batches")
    assert generations <= 3
    assert set(sent(broker)) == {str(job_id) for job_id in job_ids}


def test_the_command_names_both_brokers_and_no_password(
    scheduler: Callable[..., Outcome],
    ledger: Ledger,
    broker: Broker,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, 3)
    scheduler("daily")
    monkeypatch.setenv("RECONCILE_INTERVAL_SECONDS", "10")
    prefixes = [broker.key_prefix, f"other-{uuid4().hex}:"]
    # A server without a password takes any of the user "default".
    monkeypatch.setenv("REDIS_URL", redis_url)
    outcomes = []
    for prefix in prefixes * 2:
        monkeypatch.setenv("REDIS_KEY_PREFIX", prefix)
        outcomes.append(scheduler("reconcile", "--json"))
    assert [outcome.status for outcome in outcomes] == [0, 0, 2, 2]
    (error,) = outcomes[-1].errors
    assert "two brokers in turn" in error
    assert prefixes[1] in error
    Broker(broker.url, prefixes[1]).lose_everything()


def test_a_place_shows_no_secret_and_is_short() -> None:
    hostile = "redis://user:s3cret@" + "h" * 5000 + "\x1b2J:6380/3"
    state = RedisBroker("redis://user:s3cret@example.org:6380/3", "p:")
    assert state.place == "example.org:6380/3 with the key prefix 'p:'"
    assert RedisBroker("redis://example.org", "").place == "example.org:6379/0"
    from worker_scheduler.publisher.broker import place

    shown = place(hostile, "\x1b" * 5000)
    assert "s3cret" not in shown
    assert "\x1b" not in shown
    assert len(shown) < 450
