"""Messages that are no tasks: remote control, events, and what kombu keeps of those that workers hold."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from redis import Redis

from tests.intake.malformed import ODD, good, texts
from tests.support.messages import Broker
from tests.support.processes import Process, celery, started
from tests.support.waiting import wait_until


@pytest.fixture
def app(deployed: None) -> Celery:
    import worker_scheduler

    return worker_scheduler.app


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    arguments = ("worker", "-Q", "scheduler", "--pool", "solo", "--loglevel", "INFO")
    with started(celery(environment, tmp_path / "log", *arguments)) as process:
        process.wait_for_log("ready.")
        yield process


def fanout(part: str, value: Any) -> bytes:
    """A message of the remote control or of an event, but for one part."""
    message = good("", "")
    message["body"] = json.dumps({"method": "ping", "type": "worker-online", "hostname": "a@b"})
    if part in message:
        message[part] = value
    elif part in message["properties"]:
        message["properties"][part] = value
    else:
        message["headers"][part] = value
    return json.dumps(message).encode()


PARTS = (
    "body",
    "headers",
    "properties",
    "delivery_tag",
    "delivery_info",
    "body_encoding",
    "clock",
    "hostname",
)
BODIES = [json.dumps(value) for value in (*ODD, {"method": 5}, {"method": "x"}, {"destination": 5})]


def test_remote_control_and_events_end_no_worker(
    worker: Process, app: Celery, broker: Broker, redis: Redis
) -> None:
    database = redis.connection_pool.connection_kwargs["db"]
    places = [
        f"{broker.key_prefix}/{database}.{name}"
        for name in ("celery.pidbox", "celeryev/worker.heartbeat", "celeryev/worker.elect.ack")
    ]
    payloads = [*texts(), *(fanout(part, value) for part in PARTS for value in ODD)]
    payloads += [fanout("body", body) for body in BODIES]
    payloads += [fanout("delivery_info", {"exchange": "celeryev", "routing_key": value}) for value in ODD]
    assert all(redis.publish(place, b"null") == 1 for place in places)
    for place in places:
        for payload in payloads:
            redis.publish(place, payload)
    deadline = time.monotonic() + 30
    while not (answers := app.control.ping(timeout=1)):
        assert time.monotonic() < deadline
        assert worker.running, worker.log()[-3000:]
    assert list(answers[0].values()) == [{"ok": "pong"}]
    assert "Connection to broker lost" not in worker.log()


def test_an_entry_that_cannot_be_put_back_does_not_keep_the_others(
    environment: dict[str, str], broker: Broker, redis: Redis, tmp_path: Path
) -> None:
    """What a dead worker held is in kombu's hash `unacked`; one bad entry there stopped all restores."""
    prefix = broker.key_prefix
    held = good("scheduler")
    held["headers"]["task"] = "no.such.task"
    for entry in (b"5", b"null", b"\xff", b"[]", b"[1, 2, 3]", b"[null, [], {}]"):
        tag = str(uuid4())
        redis.hset(f"{prefix}unacked", tag, entry)
        redis.zadd(f"{prefix}unacked_index", {tag: 2})
    redis.hset(f"{prefix}unacked", "good", json.dumps([held, "", "scheduler"]))
    redis.zadd(f"{prefix}unacked_index", {"good": 1})
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    arguments = ("worker", "-Q", "scheduler", "--pool", "solo", "--loglevel", "INFO")
    with started(celery(environment, tmp_path / "log", *arguments)) as process:
        process.wait_for_log("no task of this worker has the name no.such.task")
        wait_until(lambda: broker.unacknowledged() == 0, 30, "nothing held")
        assert process.running
    assert "Traceback" not in process.log()
