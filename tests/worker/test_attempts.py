"""How many attempts a job has, and what a stopped worker's interruption does to that number."""

import importlib
import sys
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from tests.support import attempts
from tests.support.contexts import NOON
from tests.support.ledger import Row
from tests.support.own_worker import Deployment
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.maintenance import reconciler
from worker_scheduler.worker import RetryLater

STOPPED = SystemExit(-241)
"""What billiard raises in a process of its pool that gets SIGTERM."""


def interrupt(deployment: Deployment, job_id: UUID) -> Row:
    with pytest.raises(SystemExit):
        deployment.run(job_id, STOPPED)
    return deployment.ledger.job(job_id)


def claim(deployment: Deployment, job_id: UUID) -> ClaimedJob:
    with deployment.context.database.autocommit() as connection:
        claimed = attempts.claim(connection, job_id, deployment.clock(), deployment.clock())
    assert claimed is not None
    return claimed


def test_two_of_three_interruptions_cost_no_attempt(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    counts = []
    for _ in range(6):
        job = interrupt(deployment, job_id)
        assert (job["status"], job["not_before"], job["error_message"]) == ("PENDING", NOON, None)
        counts.append((job["attempt"], job["attempts_allowed"], job["interruptions"]))
    assert counts == [(1, 4, 1), (2, 5, 2), (3, 5, 3), (4, 6, 4), (5, 7, 5), (6, 7, 6)]
    job = deployment.run(job_id, RetryLater(delay=0))
    assert (job["status"], job["error_message"]) == ("FAILED", "gave up after 7 attempts: RetryLater")


@pytest.mark.skipif(sys.platform == "win32", reason="has no gevent")
def test_a_greenlet_that_is_killed_hands_its_job_back(deployment: Deployment) -> None:
    """By a cold shutdown, also of another code base's worker; `control terminate` makes it SKIPPED then."""
    (job_id,) = deployment.jobs(1)
    killed = importlib.import_module("greenlet").GreenletExit()
    job = deployment.retrying("all").run(job_id, killed)
    assert (job["status"], job["error_message"], job["interruptions"]) == ("PENDING", None, 1)


def test_a_job_that_hangs_through_every_restart_ends(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    for _ in range(9):
        job = interrupt(deployment, job_id)
    assert (job["status"], job["attempt"]) == ("FAILED", 9)
    assert job["error_message"] == "gave up after 9 attempts: interrupted 9 times by stops of its worker"
    assert job["completed_at"] == NOON


@pytest.mark.parametrize(("max_attempts", "interruptions"), [(1, 3), (2, 6)])
def test_the_bound_follows_from_the_setting(
    max_attempts: int, interruptions: int, deployment: Deployment
) -> None:
    deployment = replace(deployment, worker=replace(deployment.worker, max_attempts=max_attempts))
    (job_id,) = deployment.jobs(1)
    for _ in range(interruptions - 1):
        assert interrupt(deployment, job_id)["status"] == "PENDING"
    assert interrupt(deployment, job_id)["status"] == "FAILED"


def test_an_innocent_job_survives_deployments_and_its_own_retries(deployment: Deployment) -> None:
    """Two deployments, and two attempts of three that ask for another one."""
    (job_id,) = deployment.jobs(1)
    for _ in range(2):
        interrupt(deployment, job_id)
        assert deployment.run(job_id, RetryLater(delay=0))["status"] == "PENDING"
    deployment.worker.run(job_id, lambda job: None)
    assert deployment.ledger.job(job_id)["status"] == "COMPLETED"


def test_a_row_may_allow_more_attempts_than_the_setting(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    deployment.ledger.execute("UPDATE sync_jobs SET attempts_allowed = 5")
    for _ in range(4):
        assert deployment.run(job_id, RetryLater(delay=0))["status"] == "PENDING"
    assert deployment.run(job_id, RetryLater(delay=0))["status"] == "FAILED"


@pytest.mark.parametrize(("allowed", "ends"), [(None, 3), (1, 1), (5, 5)])
def test_dead_workers_count_against_what_the_row_allows(
    allowed: int | None, ends: int, deployment: Deployment
) -> None:
    (job_id,) = deployment.jobs(1)
    if allowed is not None:
        deployment.ledger.execute(f"UPDATE sync_jobs SET attempts_allowed = {allowed}")
    for attempt in range(1, ends + 1):
        assert deployment.ledger.job(job_id)["status"] == "PENDING"
        assert claim(deployment, job_id).attempt == attempt
        deployment.clock.forward(timedelta(minutes=2))
        assert reconciler.dead_workers(deployment.context) == 1
    job = deployment.ledger.job(job_id)
    assert job["error_message"] == f"gave up after {ends} attempts: worker lost"


def test_an_attempt_that_was_taken_away_hands_nothing_back(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    first = claim(deployment, job_id)
    deployment.clock.forward(timedelta(minutes=2))
    assert reconciler.dead_workers(deployment.context) == 1
    second = claim(deployment, job_id)
    for end in (deployment.worker.endings.hand_back, lambda job: deployment.worker.endings.lose(job, "x")):
        assert end(first) is None
    job = deployment.ledger.job(job_id)
    assert (job["status"], job["attempt"], job["interruptions"]) == ("RUNNING", 2, 0)
    assert deployment.worker.endings.hand_back(second) is not None
    assert deployment.ledger.job(job_id)["interruptions"] == 1


def test_a_lost_attempt_counts_and_the_next_follows_at_once(deployment: Deployment) -> None:
    (job_id,) = deployment.jobs(1)
    for _ in range(2):
        deployment.worker.endings.lose(claim(deployment, job_id), "its process was killed")
        job = deployment.ledger.job(job_id)
        assert (job["status"], job["not_before"]) == ("PENDING", NOON)
        assert job["error_message"] == "its process was killed"
    deployment.worker.endings.lose(claim(deployment, job_id), "its process was killed")
    job = deployment.ledger.job(job_id)
    assert (job["status"], job["attempts_allowed"]) == ("FAILED", None)
    assert job["error_message"] == "gave up after 3 attempts: its process was killed"


def test_a_timeout_is_tried_again_only_if_the_setting_says_so(deployment: Deployment) -> None:
    first, second = deployment.jobs(2)
    deployment.worker.endings.time_out(claim(deployment, first), 3600.0)
    job = deployment.ledger.job(first)
    assert (job["status"], job["error_message"]) == ("FAILED", "timed out after 3600 s")
    deployment = deployment.retrying("JobTimeout")
    for _ in range(2):
        deployment.worker.endings.time_out(claim(deployment, second), 0.5)
        job = deployment.ledger.job(second)
        assert (job["status"], job["error_message"]) == ("PENDING", "timed out after 0.5 s")
        deployment.clock.forward(timedelta(hours=1))
    deployment.worker.endings.time_out(claim(deployment, second), 0.5)
    job = deployment.ledger.job(second)
    assert job["error_message"] == "gave up after 3 attempts: timed out after 0.5 s"
