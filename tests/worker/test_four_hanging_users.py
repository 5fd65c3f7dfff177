"""Four users whose handlers never return, in a pool of four: they hurt their own jobs and nothing else."""

import math
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.support.command_line import as_process
from tests.support.ledger import Row
from tests.support.limited_handlers import HANGING
from tests.support.processes import Process, celery, started
from tests.support.site import Site
from tests.support.users import github_login, make_users
from tests.support.waiting import wait_until
from worker_scheduler.config.options import BackfillOptions, DailyOptions
from worker_scheduler.fanout import tick

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

INTERVAL = 4
OTHERS = [github_login(number) for number in range(5, 9)]
LATE = timedelta(seconds=10)
"""How late a busy machine may be. It is less than the 30 s after which a process would be replaced."""


@pytest.fixture
def three_intervals(site: Site) -> float:
    """In seconds; and on a busy machine as long as a few processes take to start there now."""
    began = time.monotonic()
    assert as_process(site.environment, "status").status == 0
    return 3 * INTERVAL + 3 * (time.monotonic() - began)


@pytest.fixture
def beat(site: Site) -> Iterator[Process]:
    environment = site.environment | {"RECONCILE_INTERVAL_SECONDS": str(INTERVAL)}
    with started(celery(environment, site.folder / "beat.log", "beat", "--loglevel", "INFO")) as process:
        yield process


def test_four_users_that_hang_in_a_pool_of_four_hurt_only_their_own_jobs(
    site: Site, three_intervals: float, beat: Process
) -> None:
    limit = math.ceil(three_intervals) + 10  # the pool stays full for as long as the repair may take
    variables = {
        "JOB_TIMEOUT_SECONDS": str(limit),
        "RECONCILE_INTERVAL_SECONDS": str(INTERVAL),
        "MESSAGE_GRACE_SECONDS": "0",
    }
    every_queue = ("-Q", "scheduler,daily,backfill")
    prefork = ("--pool", "prefork", "--concurrency", "4")
    handler = "tests.support.limited_handlers:hang_for_four"
    make_users(site.ledger.url, len(HANGING))
    tick.daily(site.context, DailyOptions())
    with site.worker(handler, *every_queue, *prefork, **variables) as worker:
        wait_until(lambda: site.ledger.states() == {"RUNNING": 4}, 90, "a full pool")

        make_users(site.ledger.url, len(HANGING) + len(OTHERS))
        tick.daily(site.context, DailyOptions())
        report = tick.backfill(site.context, BackfillOptions(backfill_days=3, github_logins=tuple(OTHERS)))
        assert report.jobs_enqueued == len(OTHERS)
        assert report.partition_key is not None
        site.broker.lose_queue("backfill")
        wait_until(
            lambda: site.broker.count("backfill") == len(OTHERS),
            three_intervals,
            "the messages that were lost",
        )
        assert site.ledger.states() == {"RUNNING": 4, "PENDING": 2 * len(OTHERS)}
        assert site.broker.count("scheduler") > 0  # Beat's triggers wait behind the jobs

        ended = {"FAILED": len(HANGING), "COMPLETED": 2 * len(OTHERS)}
        wait_until(lambda: site.ledger.states() == ended, limit + 60, "the end of all jobs")
        finished = "SELECT count(*) = 2 FROM sync_runs WHERE state = 'FINISHED'"
        wait_until(lambda: site.ledger.value(finished), three_intervals, "two finished runs")
        assert worker.running
    assert beat.running
    jobs = site.ledger.jobs()
    hung = [job for job in jobs if job["status"] == "FAILED"]
    assert {job["github_login"] for job in hung} == HANGING
    assert {job["error_message"] for job in hung} == {f"timed out after {limit} s"}
    assert {job["attempt"] for job in jobs} == {1}
    for job in hung:
        assert timedelta(seconds=limit) <= took(job) < timedelta(seconds=limit) + LATE
    served = max(job["completed_at"] for job in jobs if job["status"] == "COMPLETED")
    assert served - min(job["completed_at"] for job in hung) < LATE


def took(job: Row) -> timedelta:
    difference: timedelta = job["completed_at"] - job["started_at"]
    return difference
