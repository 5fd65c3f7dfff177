"""Probes and real workers: who answers one, and what they find while the queue is never empty."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from redis import Redis

from tests.support.contexts import context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, celery, started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import probes
from worker_scheduler.maintenance import reconciler
from worker_scheduler.probe_ids import new_probe_id
from worker_scheduler.publisher.probe_message import probe_message
from worker_scheduler.worker import claim

pytestmark = pytest.mark.slow

DAY = datetime(2026, 11, 23, tzinfo=UTC).date()
ROOT = Path(__file__).resolve().parents[2]
GRACE, INTERVAL = 0.5, 0.5
LOST = 20


@pytest.fixture
def context(deployed: None) -> Iterator[TickContext]:
    settings = {"message_grace_seconds": GRACE, "reconcile_interval_seconds": INTERVAL}
    with context_at(utc_now, max_enqueued_jobs=10**6, **settings) as context:
        yield context


def send_probe(context: TickContext, queue: str) -> UUID:
    probe_id, now = new_probe_id(), utc_now()
    with context.database.transaction() as connection:
        assert probes.announce(connection, probe_id, queue, now=now, not_since=now)
    context.publisher.publish([probe_message(probe_id, queue)])
    return probe_id


def solo(environment: dict[str, str], log: Path) -> Process:
    return worker_of(environment, log, "daily,backfill")


def threads(environment: dict[str, str], log: Path) -> Process:
    return celery(environment, log, "worker", "-Q", "daily,backfill", "--pool", "threads", "-l", "INFO")


def foreign(environment: dict[str, str], log: Path) -> Process:
    """A worker of an application that uses `claim`."""
    process = worker_of(environment, log, "daily,backfill")
    process._command[process._command.index("worker_scheduler")] = "tests.support.foreign_app"
    return process


@pytest.mark.parametrize("worker", [solo, threads, foreign])
def test_a_worker_answers_a_probe_and_says_nothing(
    worker: Callable[[dict[str, str], Path], Process],
    context: TickContext,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    environment |= {"PYTHONPATH": str(ROOT), "SYNC_HANDLER": "tests.support.handlers:by_login"}
    log = tmp_path / "worker.log"
    for queue in ("daily", "backfill"):
        send_probe(context, queue)
    with started(worker(environment, log)):
        arrived = "SELECT count(*) FROM sync_probes WHERE arrived_at IS NOT NULL"
        wait_until(lambda: ledger.value(arrived) == 2, 30, "both probes")
        wait_until(lambda: broker.unacknowledged() == 0, 10, "their end")
    assert "ignored" not in log.read_text()
    assert "ERROR" not in log.read_text()
    assert "WARNING/MainProcess] Task" not in log.read_text()


def test_claim_answers_a_probe(context: TickContext, ledger: Ledger) -> None:
    probe_id = send_probe(context, "daily")
    for job_id in (probe_id, str(probe_id), str(probe_id)):
        with claim(job_id) as job:
            assert job is None
    assert ledger.value("SELECT arrived_at BETWEEN sent_at AND now() FROM sync_probes") is True
    with claim(new_probe_id()) as job:  # one that nobody waits for any more
        assert job is None
    assert ledger.value("SELECT count(*) FROM sync_probes") == 1


@pytest.mark.timeout(90)
def test_messages_lost_under_load_are_found_within_the_bound(
    context: TickContext,
    environment: dict[str, str],
    ledger: Ledger,
    broker: Broker,
    tmp_path: Path,
) -> None:
    """The queue is never empty, and no other message is sent twice."""
    environment |= {"PYTHONPATH": str(ROOT), "SYNC_HANDLER": "tests.support.handlers:complete"}
    make_users(ledger.url, 200)
    tick.daily(context, DailyOptions(date=DAY))
    with Redis.from_url(broker.url) as redis:
        key = f"{broker.key_prefix}daily"
        for message in redis.lrange(key, 100, 100 + LOST - 1):
            assert redis.lrem(key, 1, message) == 1
    lost_at, runs, latency, longest_round, deepest = time.monotonic(), 1, 0.0, 0.0, []

    def recovered() -> bool:
        nonlocal runs, latency, longest_round
        began = time.monotonic()
        while time.monotonic() < began + INTERVAL:
            depth = broker.count("daily")
            deepest.append(depth)
            if depth < 200:
                tick.daily(context, DailyOptions(date=DAY + timedelta(days=runs)))
                runs += 1
            time.sleep(0.02)
        assert reconciler.reconcile(context).errors == []
        slowest = "SELECT extract(epoch FROM max(started_at - created_at)) FROM sync_jobs"
        latency = max(latency, float(ledger.value(f"{slowest} WHERE republished_at IS NULL") or 0))
        longest_round = max(longest_round, time.monotonic() - began)
        return ledger.states(f"daily:{DAY}") == {"COMPLETED": 200}

    with started(worker_of(environment, tmp_path / "worker.log", "daily")) as worker:
        worker.wait_for_log("ready")
        lost_at = time.monotonic()
        wait_until(recovered, 60, "the lost jobs")
        took = time.monotonic() - lost_at
    assert min(deepest) > 0
    # The passes come one round apart, which on a busy machine is longer than the interval.
    assert took <= GRACE + 2 * latency + 3 * longest_round + 3
    assert ledger.value("SELECT count(*) FROM sync_jobs WHERE republished_at IS NOT NULL") == LOST
    assert ledger.value("SELECT max(attempt) FROM sync_jobs") == 1
    assert "ignored" not in (tmp_path / "worker.log").read_text()
