"""RetryLater: when a job comes back, and when it does not."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.contexts import INSTANT, NOON
from tests.support.messages import Broker
from tests.support.own_worker import Deployment
from worker_scheduler.maintenance import reconciler
from worker_scheduler.worker import RetryLater


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
def test_a_job_comes_back_after_its_delay(
    delay: float | timedelta, deployment: Deployment, broker: Broker
) -> None:
    (job_id,) = deployment.jobs(1)
    broker.lose_everything()
    job = deployment.run(job_id, RetryLater("rate limit", delay=delay))
    assert (job["status"], job["attempt"], job["error_message"]) == ("PENDING", 1, "rate limit")
    assert job["not_before"] == NOON + timedelta(seconds=90)
    deployment.clock.forward(timedelta(seconds=90) - INSTANT)
    assert deployment.run(job_id, RetryLater("too early")) == job
    assert reconciler.due_jobs(deployment.context) == 0
    deployment.clock.forward(INSTANT)
    assert reconciler.due_jobs(deployment.context) == 1
    # Postgres holds the delay, not Celery, because a message with an ETA waits in a worker's memory.
    (message,) = broker.messages("daily")
    assert "eta" not in message.headers
    deployment.worker.run(job_id, lambda job: None)
    job = deployment.ledger.job(job_id)
    assert (job["status"], job["attempt"], job["error_message"]) == ("COMPLETED", 2, None)


@pytest.mark.parametrize("delay", [0, -5])
def test_a_job_without_delay_is_due_at_once(delay: float, deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    assert deployment.run(job_id, RetryLater(delay=delay))["not_before"] == NOON
    assert reconciler.due_jobs(deployment.context) == 1


@pytest.mark.slow
def test_without_a_delay_it_backs_off_with_jitter(deployment: Deployment) -> None:
    deployment = replace(deployment, worker=replace(deployment.worker, max_attempts=100))
    job_ids = deployment.jobs(20)
    for attempt in range(1, 11):
        full = min(30 * 2 ** (attempt - 1), 3600)
        delays = set()
        for job_id in job_ids:
            job = deployment.run(job_id, RetryLater())
            assert job["attempt"] == attempt
            delays.add((job["not_before"] - deployment.clock()).total_seconds())
        assert full / 2 <= min(delays) < max(delays) <= full
        assert len(delays) > 15
        deployment.clock.forward(timedelta(hours=1))


def test_a_job_fails_after_its_last_attempt(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    for attempt in (1, 2):
        job = deployment.run(job_id, RetryLater("rate limit", delay=0))
        assert (job["status"], job["attempt"]) == ("PENDING", attempt)
    job = deployment.run(job_id, RetryLater("rate limit", delay=0))
    assert (job["status"], job["attempt"]) == ("FAILED", 3)
    assert job["error_message"] == "gave up after 3 attempts: rate limit"
    assert job["completed_at"] == NOON


def test_lost_workers_and_retries_count_together(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    deployment.run(job_id, RetryLater(delay=0))
    for _ in range(2):
        with deployment.context.database.autocommit() as connection:
            from tests.support import attempts

            now = deployment.clock()
            assert attempts.claim(connection, job_id, now, now)
        reconciler.reconcile(deployment.context)
    assert deployment.ledger.job(job_id)["error_message"] == "gave up after 3 attempts: worker lost"
