"""A message that no worker can read is set aside, and the worker goes on."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.intake.malformed import malformed
from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, celery, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.intake.set_aside import SET_ASIDE_KEY

pytestmark = pytest.mark.slow

Scheduler = Callable[..., Outcome]
DAY = "2026-11-23"


@pytest.fixture
def deployment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return environment | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "HANDLER_FOLDER": str(tmp_path),
    }


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


def worker_with(deployment: dict[str, str], log: Path, pool: str, *arguments: str) -> Process:
    return celery(
        deployment,
        log,
        *("worker", "-Q", "scheduler,daily,backfill", "--pool", pool, "--concurrency", "2"),
        *("--loglevel", "INFO", *arguments),
    )


def entries(redis: Redis, broker: Broker) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in redis.lrange(broker.key_prefix + SET_ASIDE_KEY, 0, -1)]


@pytest.mark.parametrize(
    ("pool", "queue"), [("solo", "daily"), ("prefork", "scheduler"), ("threads", "backfill")]
)
def test_malformed_messages_are_set_aside_and_the_worker_goes_on(
    pool: str,
    queue: str,
    deployment: dict[str, str],
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    redis: Redis,
    tmp_path: Path,
) -> None:
    make_users(ledger.url, 3)
    bad = list(malformed(queue))
    assert len(bad) > 200
    worker = worker_with(deployment, tmp_path / "log", pool)
    with started(worker):
        worker.wait_for_log("ready.")
        redis.lpush(broker.key_prefix + queue, *bad)
        assert scheduler("daily", "--date", DAY).status == 0
        wait_until(lambda: ledger.states(f"daily:{DAY}") == {"COMPLETED": 3}, 60, "the good jobs done")
        wait_until(lambda: not broker.counts(), 30, "empty queues")
        wait_until(lambda: broker.unacknowledged() == 0, 30, "nothing held")
        assert worker.running
    log = worker.log()
    assert "Traceback" not in re.sub("event=.*", "", log)
    assert "Connection to broker lost" not in log
    set_aside = entries(redis, broker)
    assert len(set_aside) > 200
    assert log.count('event="message set aside"') == len(set_aside)
    assert {entry["queue"] for entry in set_aside} == {queue}
