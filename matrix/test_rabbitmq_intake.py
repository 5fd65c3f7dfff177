"""Messages in RabbitMQ that no worker can read."""

import bz2
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Producer
from redis import Redis

from matrix.test_rabbitmq import BROKER_URL, DAY, KEY, Queues, deployment, queues
from tests.intake.malformed import ODD, good
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until

__all__ = ["deployment", "queues"]  # fixtures


def malformed() -> Iterator[dict[str, Any]]:
    """What a producer publishes: a body, and options."""
    fields = good("daily")
    form = {"content_type": "application/json", "content_encoding": "utf-8"}
    for name in fields["headers"]:
        for value in ODD:
            if not isinstance(value, str) or len(value) < 300:
                yield form | {"body": fields["body"], "headers": fields["headers"] | {name: value}}
    for body in (b"null", b"", b"5", b"\xff", b"[]", b"[[], {}]", b"[" * 5000):
        yield form | {"body": body, "headers": fields["headers"]}
        yield {"body": body, "content_type": "x", "content_encoding": "x", "headers": {}}
    headers = fields["headers"] | {"compression": "application/x-bz2"}
    yield form | {"body": bz2.compress(b"0" * 1_000_000), "headers": headers}


def publish(messages: Iterator[dict[str, Any]]) -> int:
    with Connection(BROKER_URL) as connection:
        producer = Producer(connection.channel())
        number = 0
        for message in messages:
            headers = {key: value for key, value in message["headers"].items() if value != -1}
            producer.publish(**(message | {"headers": headers}), routing_key="daily")
            number += 1
    return number


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_malformed_messages_are_set_aside(
    pool: str,
    deployment: dict[str, str],
    scheduler: Any,
    ledger: Ledger,
    queues: Queues,
    broker: Broker,
    tmp_path: Path,
) -> None:
    make_users(ledger.url, 2)
    worker = worker_of(deployment, tmp_path / "log", "daily", "--pool", pool, "--concurrency", "2")
    with started(worker):
        worker.wait_for_log("ready.")
        assert publish(malformed()) > 200
        assert scheduler("daily", "--date", DAY).status == 0
        wait_until(lambda: ledger.states(KEY) == {"COMPLETED": 2}, 60, "the good jobs done")
        wait_until(lambda: queues.count("daily") == 0, 30, "an empty queue")
        assert worker.running
    log = worker.log()
    assert "Traceback" not in log
    assert "Connection to broker lost" not in log
    with Redis.from_url(broker.url) as redis:
        entries = redis.lrange(f"{broker.key_prefix}worker_scheduler:set_aside", 0, -1)
    assert len(entries) == log.count('event="message set aside"') > 100
    assert {json.loads(entry)["queue"] for entry in entries} == {"daily"}
