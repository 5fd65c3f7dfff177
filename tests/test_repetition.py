"""A tick that meets an outage is repeated: its one message never becomes two, and has no ETA."""

import json
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from tests.support.ledger import Ledger
from tests.support.messages import QUEUES, Broker
from tests.support.processes import started, worker_of
from tests.support.proxy import Proxy
from tests.support.users import make_users
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

VISIBILITY_SECONDS = 3


@pytest.fixture
def app(deployed: None) -> Celery:
    import worker_scheduler

    worker_scheduler.app.loader.import_default_modules()
    return worker_scheduler.app


def headers_of_all(broker: Broker) -> list[dict[str, Any]]:
    """The headers of every message that waits or that a worker holds."""
    with Redis.from_url(broker.url) as redis:
        held = [json.loads(entry)[0] for entry in redis.hvals(f"{broker.key_prefix}unacked")]
    return [message["headers"] for message in held] + [
        message.headers for queue in QUEUES for message in broker.messages(queue)
    ]


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        ("scheduler.daily_tick", {"date": "2026-11-23"}),
        ("scheduler.backfill", {"backfill_days": 1, "partition_key": "p"}),
        ("scheduler.dispatch", {"partition_key": "p"}),
    ],
)
def test_one_ring_stays_one_message_while_postgres_is_away(
    task: str,
    kwargs: dict[str, object],
    app: Celery,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    make_users(ledger.url, 1)
    with Proxy(environment["DATABASE_URL"], cut_after=0) as proxy:
        own = environment | {
            "DATABASE_URL": proxy.url,
            "VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_SECONDS),
        }
        with started(worker_of(own, tmp_path / "worker.log", "scheduler")) as worker:
            app.send_task(task, kwargs=kwargs, queue="scheduler")
            seen: list[dict[str, Any]] = []

            def repeated() -> bool:
                seen.extend(headers_of_all(broker))
                return worker.log().count("retry: Retry in") >= 5

            wait_until(repeated, 60, "five repetitions")
            proxy.heal()
            worker.wait_for_log("succeeded in")
            wait_until(lambda: not broker.unacknowledged(), 30, "an end without messages")
    assert {headers.get("eta") for headers in seen if headers["task"] == task} == {None}
    assert len({headers["id"] for headers in seen if headers["task"] == task}) == 1
    # Each execution but the last has asked for the next one.
    assert worker.log().count("] received") == worker.log().count("retry: Retry in") + 1
    assert worker.log().count("succeeded in") == 1


@pytest.mark.parametrize(("visibility", "longest"), [(2, 1), (3, 1), (30, 10), (600, 20), (86_400, 20)])
def test_no_pause_is_longer_than_half_the_visibility_timeout(
    visibility: int, longest: int, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIBILITY_TIMEOUT_SECONDS", str(visibility))
    import worker_scheduler

    worker_scheduler.app.loader.import_default_modules()
    for name in ("scheduler.daily_tick", "scheduler.backfill", "scheduler.dispatch"):
        task = worker_scheduler.app.tasks[name]
        assert task.retry_backoff_max == longest <= visibility / 2
        # On average as long as half an hour.
        assert task.max_retries * longest / 2 >= 1800
