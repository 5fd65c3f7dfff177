"""What another program writes into the keys of Redis: it stops no rule, no tick and no check."""

import json
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from tests.support.command_line import Outcome
from tests.support.hypotheses import inputs
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.publisher.kombu_entries import read_unacknowledged
from worker_scheduler.publisher.redis_broker import RedisBroker

Scheduler = Callable[..., Outcome]

DAY = "2026-11-23"
KEY = f"daily:{DAY}"
EVENT = "cannot read what Redis holds, it counts for no queue"
KOMBUS = json.dumps([{}, "", "daily"])
ENTRIES: list[str | bytes] = [
    *("5", "null", "", "{", '"abc"', '{"a": 1, "b": 2, "c": 3}', "[1, 2]", "[[], [], []]"),
    *('[{}, "", ["daily"]]', '[{}, "", null]', "[" * 100_000, "1" * 5000, "nan", "\x1b]0;x\x07\n"),
    *(b"\xff\xfe", b"\x80\x04\x95", b'[{}, "", "\xff"]x', b"\x00"),
]


@pytest.fixture
def redis(broker: Broker) -> Iterator[Redis]:
    with Redis.from_url(broker.url) as client:
        yield client


@pytest.fixture
def enqueued(scheduler: Scheduler, ledger: Ledger) -> None:
    """A day's run whose queue reconcile looks into: its jobs wait, and its grace time is over."""
    make_users(ledger.url, 3)
    assert scheduler("daily", "--date", DAY).status == 0
    ledger.execute("UPDATE sync_batches SET enqueued_at = now() - interval '1 day'")


def warnings(outcome: Outcome) -> list[str]:
    return [line for line in outcome.stderr.splitlines() if EVENT in line]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: repr(entry)[:30])
def test_an_unreadable_entry_of_unacked_belongs_to_no_queue(
    entry: str | bytes, broker: Broker, redis: Redis
) -> None:
    key = f"{broker.key_prefix}unacked"
    redis.hset(key, mapping={"unreadable": entry, "kombu's": KOMBUS})
    state = RedisBroker(broker.url, broker.key_prefix)
    assert [state.depth(queue) for queue in ("daily", "backfill")] == [1, 0]


@pytest.mark.parametrize("entry", [b"5", b"null", b"\xff\xfe", b"[" * 100_000], ids=lambda e: repr(e)[:20])
def test_an_unreadable_entry_gives_one_warning_and_every_rule_goes_on(
    entry: bytes, enqueued: None, scheduler: Scheduler, broker: Broker, redis: Redis
) -> None:
    for number in range(3):
        redis.hset(f"{broker.key_prefix}unacked", f"x{number}", entry)
    redis.delete(f"{broker.key_prefix}daily")
    outcome = scheduler("reconcile", "--json")
    assert (outcome.status, outcome.report["errors"]) == (0, [])
    assert outcome.report["lost_messages"] == outcome.report["due_jobs"] == 3
    (warning,) = warnings(outcome)
    assert "unacked" in warning
    assert "3 of 3 entries" in warning
    assert len(warning) < 400


@pytest.mark.parametrize("name", ["unacked", "daily", "daily\x06\x163"])
def test_a_key_of_another_type_holds_no_message(
    name: str, enqueued: None, scheduler: Scheduler, broker: Broker, redis: Redis
) -> None:
    redis.delete(f"{broker.key_prefix}daily")
    redis.set(f"{broker.key_prefix}{name}", "5")
    state = RedisBroker(broker.url, broker.key_prefix)
    assert state.depth("daily") == state.depth("backfill") == 0
    outcome = scheduler("reconcile", "--json")
    assert outcome.report["lost_messages"] == 3
    (warning,) = warnings(outcome)
    assert name.partition("\x06")[0] in warning
    # To that queue nothing can be sent; what it says names the key.
    if name == "daily":
        assert outcome.status == 4
        assert [
            f"the key '{broker.key_prefix}daily' at" in error for error in outcome.report["errors"]
        ] == [True]
    else:
        assert outcome.report["errors"] == []


def test_a_batch_that_its_queue_refused_is_sent_when_the_key_is_right_again(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, redis: Redis
) -> None:
    """Otherwise a marker without messages would say that the batch was pushed."""
    make_users(ledger.url, 3)
    redis.set(f"{broker.key_prefix}daily", "5")
    refused = scheduler("daily", "--date", DAY)
    assert (refused.status, refused.error.count("holds a string instead of a list")) == (4, 1)
    redis.delete(f"{broker.key_prefix}daily")
    assert scheduler("daily", "--date", DAY).status == 0
    assert broker.counts() == {"daily": 3}


def write_hash(redis: Redis, key: str) -> None:
    redis.delete(key)
    redis.hset(key, "x", "5")


MARKERS: list[Callable[[Redis, str], object]] = [
    lambda redis, key: redis.set(key, "garbage"),
    lambda redis, key: redis.set(key, ""),
    lambda redis, key: redis.set(key, b"\xff\xfe"),
    lambda redis, key: redis.set(key, "\x1b[2J\n" + "x" * 100_000),
    lambda redis, key: redis.set(key, "{12345678-1234-1234-1234-123456789abc}"),
    lambda redis, key: redis.set(key, "-" * 36),
    write_hash,
]


@pytest.mark.parametrize("publisher", ["group", "auto"])
@pytest.mark.parametrize("write", MARKERS, ids=range(len(MARKERS)))
@pytest.mark.slow
def test_an_unreadable_broker_epoch_is_one_line_that_names_the_key(
    write: Callable[[Redis, str], object],
    publisher: str,
    enqueued: None,
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PUBLISHER", publisher)
    key = f"{broker.key_prefix}worker_scheduler:epoch"
    write(redis, key)
    for command in (
        ("daily", "--date", "2026-11-24"),
        ("backfill", "--backfill-days", "7", "--confirm"),
        ("reconcile",),
    ):
        outcome = scheduler(*command)
        assert outcome.status == 4
        for error in outcome.errors:
            assert f"the key '{key}' at" in error
            assert "delete the key" in error
            assert len(error) < 500
    checked = scheduler("check")
    assert checked.status == 4
    (fault,) = checked.faults
    assert f"the key '{key}' at" in fault
    assert broker.counts() == {"daily": 3}

    # When the key is gone, everything that waits is sent; nothing was left half sent.
    redis.delete(key)
    broker.lose_queue("daily")
    for _ in range(2):
        assert scheduler("reconcile").status == 0
    assert scheduler("check").faults == []
    assert broker.counts() == {"daily": 6, "backfill": 3}


def test_check_makes_no_broker_epoch(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 1)
    assert scheduler("check").status == 0
    assert broker.everything() == {}


def test_an_unreadable_handover_is_nobodys(broker: Broker, redis: Redis) -> None:
    state = RedisBroker(broker.url, broker.key_prefix)
    key = f"{broker.key_prefix}worker_scheduler:baton:{KEY}"
    redis.hset(key, "x", "5")
    assert not state.take_handover(KEY, "a message")
    assert not state.reserve_handover(KEY, "another")
    redis.delete(key)
    redis.set(key, b"\xff")
    assert not state.take_handover(KEY, "a message")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@inputs(0.3)
@given(st.text() | _JSON.map(json.dumps) | st.binary().map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_an_entry_is_read_or_it_is_not(entry: str) -> None:
    found = read_unacknowledged(entry)
    assert found is None or (isinstance(found.queue, str) and isinstance(found.message, dict))


@inputs(0.05)
@given(
    entries=st.lists(st.binary(), max_size=5),
    marker=st.binary(),
    messages=st.lists(st.binary(), max_size=3),
)
def test_any_bytes_in_redis_give_an_answer_or_a_documented_error(
    entries: list[bytes], marker: bytes, messages: list[bytes], broker: Broker, redis: Redis
) -> None:
    from worker_scheduler.errors import StoreUnavailable

    for name in ("unacked", "daily", "worker_scheduler:epoch"):
        redis.delete(f"{broker.key_prefix}{name}")
    for number, entry in enumerate(entries):
        redis.hset(f"{broker.key_prefix}unacked", str(number), entry)
    for message in messages:
        redis.lpush(f"{broker.key_prefix}daily", message)
    redis.set(f"{broker.key_prefix}worker_scheduler:epoch", marker)
    state = RedisBroker(broker.url, broker.key_prefix)
    assert state.depth("daily") == len(messages)
    with pytest.raises(StoreUnavailable):
        state.epoch()
