"""RetryLater: when a job comes back, and when it does not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import pytest

from tests.support.contexts import INSTANT, NOON, HandedClock, context_at
from tests.support.ledger import Ledger, Row
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler import reconciler, tick
from worker_scheduler.context import TickContext
from worker_scheduler.options import DailyOptions
from worker_scheduler.worker import RetryLater, SyncJob, Worker


@dataclass
class Shop:
    context: TickContext
    worker: Worker
    clock: HandedClock
    ledger: Ledger

    def jobs(self, number: int) -> list[UUID]:
        make_users(self.ledger.url, number)
        tick.daily(self.context, DailyOptions(date=NOON.date()))
        return [job["job_id"] for job in self.ledger.jobs()]

    def run(self, job_id: UUID, retry: RetryLater) -> Row:
        """The job after an attempt that ends so."""
        self.worker.run(job_id, raising(retry))
        return self.ledger.job(job_id)


def raising(error: Exception) -> Callable[[SyncJob], None]:
    def handler(job: SyncJob) -> None:
        raise error

    return handler


@pytest.fixture
def shop(deployed: None, ledger: Ledger) -> Iterator[Shop]:
    clock = HandedClock()
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON}'")
    with context_at(clock) as context:
        worker = Worker(context.database, clock, context.settings.lease, max_attempts=3)
        yield Shop(context, worker, clock, ledger)


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
def test_a_job_comes_back_after_its_delay(delay: float | timedelta, shop: Shop, broker: Broker) -> None:
    (job_id,) = shop.jobs(1)
    broker.lose_everything()
    job = shop.run(job_id, RetryLater("rate limit", delay=delay))
    assert (job["status"], job["attempt"], job["error_message"]) == ("PENDING", 1, "rate limit")
    assert job["not_before"] == NOON + timedelta(seconds=90)
    shop.clock.forward(timedelta(seconds=90) - INSTANT)
    assert shop.run(job_id, RetryLater("too early")) == job
    assert reconciler.due_jobs(shop.context) == 0
    shop.clock.forward(INSTANT)
    assert reconciler.due_jobs(shop.context) == 1
    # In Postgres, never in Celery: a message with an ETA sits in a worker's memory.
    (message,) = broker.messages("daily")
    assert "eta" not in message.headers
    shop.worker.run(job_id, lambda job: None)
    job = shop.ledger.job(job_id)
    assert (job["status"], job["attempt"], job["error_message"]) == ("COMPLETED", 2, None)


@pytest.mark.parametrize("delay", [0, -5])
def test_no_delay_is_at_once(delay: float, shop: Shop) -> None:
    (job_id,) = shop.jobs(1)
    assert shop.run(job_id, RetryLater(delay=delay))["not_before"] == NOON
    assert reconciler.due_jobs(shop.context) == 1


def test_without_a_delay_it_backs_off_with_jitter(shop: Shop) -> None:
    shop = replace(shop, worker=replace(shop.worker, max_attempts=100))
    job_ids = shop.jobs(20)
    for attempt in range(1, 11):
        full = min(30 * 2 ** (attempt - 1), 3600)
        delays = set()
        for job_id in job_ids:
            job = shop.run(job_id, RetryLater())
            assert job["attempt"] == attempt
            delays.add((job["not_before"] - shop.clock()).total_seconds())
        assert full / 2 <= min(delays) < max(delays) <= full
        assert len(delays) > 15
        shop.clock.forward(timedelta(hours=1))


def test_attempts_end(shop: Shop) -> None:
    (job_id,) = shop.jobs(1)
    for attempt in (1, 2):
        job = shop.run(job_id, RetryLater("rate limit", delay=0))
        assert (job["status"], job["attempt"]) == ("PENDING", attempt)
    job = shop.run(job_id, RetryLater("rate limit", delay=0))
    assert (job["status"], job["attempt"]) == ("FAILED", 3)
    assert job["error_message"] == "gave up after 3 attempts: rate limit"
    assert job["completed_at"] == NOON


def test_lost_workers_and_retries_count_together(shop: Shop) -> None:
    (job_id,) = shop.jobs(1)
    shop.run(job_id, RetryLater(delay=0))
    for _ in range(2):
        with shop.context.database.autocommit() as connection:
            from worker_scheduler.ledger import jobs

            now = shop.clock()
            assert jobs.claim(connection, job_id, now, now)
        reconciler.reconcile(shop.context)
    assert shop.ledger.job(job_id)["error_message"] == "gave up after 3 attempts: worker lost"
