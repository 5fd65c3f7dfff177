"""Compressed messages: refused, unless the deployment set `task_compression`, and never without a bound."""

import json
import resource
import zlib
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer, Queue
from redis import Redis

from tests.intake.malformed import PACK, compressed, good
from tests.support.messages import Broker
from worker_scheduler.intake.readable import MAX_BYTES, Unreadable
from worker_scheduler.intake.unpack import unpack

METHODS = sorted(PACK)
BOMB = (
    "QlpoOTFBWSZTWei3pg8BX44IAMAAAAggADCATUZCoCWpCoCXMUFZJlNZ6LemDwFfjggAwAAACCAAMIBNRkKgJakKgJcxQVkm"
    "U1not6YPAV+OCADAAAAIIAAwgE1GQqAlqQqAlzFBWSZTWei3pg8BX44IAMAAAAggADCATUZCoCWpCoCXMUFZJlNZ6LemDwFf"
    "jggAwAAACCAAMIBNRkKgJakKgJcxQVkmU1not6YPAV+OCADAAAAIIAAwgE1GQqAlqQqAlzFBWSZTWcuX+PcAvHQIIMAAEAAA"
    "CCAAMMwJqmmqQqC2pSFQXi7kinChIJv4fKI="
)
"""300,000,000 zeros, by bzip2 and base64."""


@pytest.fixture
def app(deployed: None) -> Celery:
    import worker_scheduler

    return worker_scheduler.app


def taken(app: Celery, broker: Broker, entry: dict[str, Any]) -> list[object]:
    """The bodies that a consumer of the app gets when the entry is in a queue."""
    bodies: list[object] = []
    with Redis.from_url(broker.url) as redis:
        redis.lpush(f"{broker.key_prefix}daily", json.dumps(entry))
    with app.connection_for_read() as connection:
        queue = Queue("daily", routing_key="daily")
        with Consumer(
            connection,
            [queue],
            callbacks=[lambda body, message: bodies.append(body), lambda body, message: message.ack()],
            accept=["json"],
        ):
            while broker.count("daily"):
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    break
    return bodies


def reasons(broker: Broker) -> list[str]:
    with Redis.from_url(broker.url) as redis:
        found = redis.lrange(f"{broker.key_prefix}worker_scheduler:set_aside", 0, -1)
    return [json.loads(entry)["reason"] for entry in found]


def test_280_bytes_do_not_become_300_megabytes(app: Celery, broker: Broker) -> None:
    bomb = compressed("daily", "application/x-bz2", b"") | {"body": BOMB}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for accepted in (None, "bzip2"):
        app.conf.task_compression = accepted
        assert taken(app, broker, bomb) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert reasons(broker) == [
        f"it has more than {MAX_BYTES} bytes when it is unpacked",
        "it is compressed, and task_compression is not set",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_accepted_if_it_is_task_compression(method: str, app: Celery, broker: Broker) -> None:
    body = json.loads(good("daily")["body"])
    app.conf.task_compression = method
    assert taken(app, broker, compressed("daily", method, json.dumps(body).encode())) == [body]
    for other in METHODS:
        if other != method:
            assert taken(app, broker, compressed("daily", other, json.dumps(body).encode())) == []
    assert reasons(broker) == ["it is compressed by another method than task_compression"] * 2


def test_what_the_app_compresses_it_reads_again(app: Celery, broker: Broker) -> None:
    app.conf.task_compression = "gzip"
    app.send_task("sync_user", ("a", "b", "c"), queue="daily")
    (message,) = broker.messages("daily")
    assert message.headers["compression"] == "application/x-gzip"
    broker.lose_queue("daily")
    (body,) = taken(app, broker, message.raw)
    assert isinstance(body, list)
    assert body[0] == ["a", "b", "c"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damage", [b"", b"garbage", "text"])
def test_what_cannot_be_unpacked_is_unreadable(method: str, damage: str | bytes) -> None:
    with pytest.raises(Unreadable):
        unpack(damage, method, method)
    with pytest.raises(Unreadable, match="its end is missing"):
        unpack(PACK[method](b"x" * 1000)[:-1], method, method)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_is_exact(method: str) -> None:
    assert len(unpack(PACK[method](b"0" * MAX_BYTES), method, method)) == MAX_BYTES
    with pytest.raises(Unreadable, match="when it is unpacked"):
        unpack(PACK[method](b"0" * (MAX_BYTES + 1)), method, method)


@pytest.mark.parametrize("method", [None, 5, [], "", "x", "application/zstd", "application/x-brotli"])
def test_other_methods_are_refused(method: object) -> None:
    for accepted in (None, "gzip", "x", str(method)):
        with pytest.raises(Unreadable):
            unpack(zlib.compress(b"x"), method, accepted)


def test_a_message_of_more_than_16_mebibytes_is_not_parsed(app: Celery, broker: Broker) -> None:
    entry = good("daily") | {"body": json.dumps([["x" * MAX_BYTES], {}, {}])}
    assert taken(app, broker, entry) == []
    assert reasons(broker) == [f"it has more than {MAX_BYTES} bytes"]
