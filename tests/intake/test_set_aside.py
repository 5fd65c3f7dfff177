"""The list of what was set aside: its form, its bounds, and a Redis that does not answer."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from tests.support.messages import Broker
from worker_scheduler import logs
from worker_scheduler.intake.set_aside import MAX_ENTRIES, MAX_ENTRY_BYTES, SET_ASIDE_KEY, SetAside


@pytest.fixture
def redis(broker: Broker) -> Iterator[Redis]:
    with Redis.from_url(broker.url) as client:
        yield client


@pytest.fixture(autouse=True)
def logging_is_set_up() -> None:
    logs.configure("INFO")


def entries(redis: Redis, broker: Broker) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in redis.lrange(broker.key_prefix + SET_ASIDE_KEY, 0, -1)]


def test_an_entry_says_when_where_why_and_what(broker: Broker, redis: Redis) -> None:
    SetAside(broker.url, broker.key_prefix).add("daily", b'{"a": 1}\xff', "it is not JSON")
    (entry,) = entries(redis, broker)
    assert entry.pop("at").endswith("+00:00")
    assert entry == {"queue": "daily", "reason": "it is not JSON", "bytes": 12, "message": '{"a": 1}\\xff'}


@pytest.mark.parametrize("fill", ["x", "\x00", "\x1b", '"', "🎉", "\\"])
def test_an_entry_has_a_bounded_size(fill: str, broker: Broker, redis: Redis) -> None:
    SetAside(broker.url, broker.key_prefix).add(fill * 10_000, fill * 1_000_000, fill * 100_000)
    (entry,) = redis.lrange(broker.key_prefix + SET_ASIDE_KEY, 0, -1)
    assert len(entry) <= MAX_ENTRY_BYTES
    assert json.loads(entry)["message"].startswith(fill * 100)


def test_the_list_keeps_the_newest(broker: Broker, redis: Redis) -> None:
    set_aside = SetAside(broker.url, broker.key_prefix)
    redis.lpush(broker.key_prefix + SET_ASIDE_KEY, *range(MAX_ENTRIES))
    set_aside.add("daily", "the newest", "x")
    newest, *others = entries(redis, broker)
    assert newest["message"] == "the newest"
    assert len(others) == MAX_ENTRIES - 1


def test_a_log_line_is_all_that_is_left_if_redis_does_not_answer(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    SetAside("redis://:s3cr3t@127.0.0.1:1/0", "").add("daily", "a\nb", "it is\x1b[2J not JSON")
    (record,) = caplog.records
    line = record.getMessage()
    assert line.isprintable()
    assert "message dropped, it could not be set aside" in line
    assert r"a\nb" in line
    assert "s3cr3t" not in line


def test_a_list_that_is_no_list_ends_no_worker(broker: Broker, redis: Redis) -> None:
    redis.set(broker.key_prefix + SET_ASIDE_KEY, "x")
    SetAside(broker.url, broker.key_prefix).add("daily", "a", "b")
