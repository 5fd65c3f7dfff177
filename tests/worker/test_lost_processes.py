"""A process of a prefork pool that is lost costs its job an attempt; a worker that is stopped does not."""

import os
import signal
from datetime import UTC, datetime
from typing import Any

import psutil
import pytest

from tests.support.processes import Process
from tests.support.site import Site
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick

pytestmark = pytest.mark.slow

HANDLERS = "tests.support.limited_handlers"
SECONDS = 90
"""How long a test waits for what takes a few seconds on a machine that is not busy."""


def wait_for(site: Site, status: str) -> dict[str, Any]:
    wait_until(lambda: site.job()["status"] == status, SECONDS, f"a {status} job")
    return site.job()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (signal.SIGKILL, "its process was lost, signal 9 (SIGKILL)"),
        (signal.SIGTERM, "its process was terminated"),
    ],
    ids=["SIGKILL", "SIGTERM"],
)
def test_a_process_that_somebody_kills_is_a_lost_attempt(
    sent: signal.Signals, reason: str, site: Site
) -> None:
    """At once, before the job's lease runs out; as after an out-of-memory kill."""
    with site.worker("until_told") as worker:
        os.kill(site.wait_for_attempt(1), sent)
        job = wait_for(site, "PENDING")
        assert (job["attempt"], job["error_message"]) == (1, reason)
        assert (job["interruptions"], job["attempts_allowed"], job["leased_until"]) == (0, None, None)
        assert job["not_before"] <= datetime.now(UTC)
        assert site.reconcile_until("COMPLETED")["attempt"] == 2
        assert worker.running


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_last_attempt_that_is_lost_fails_the_job(sent: signal.Signals, site: Site) -> None:
    with site.worker("until_told", SYNC_MAX_ATTEMPTS="1"):
        os.kill(site.wait_for_attempt(1), sent)
        job = wait_for(site, "FAILED")
    assert str(job["error_message"]).startswith("gave up after 1 attempt: its process was ")


def test_celerys_time_limit_ends_a_job_after_its_attempts(site: Site) -> None:
    with site.worker(f"{HANDLERS}:sleep_for_ever", "--time-limit", "1", SYNC_MAX_ATTEMPTS="2"):

        def failed() -> bool:
            site.reconcile()
            return bool(site.job()["status"] == "FAILED")

        wait_until(failed, SECONDS, "a FAILED job")
    assert sorted(noted.name.rpartition("-")[0] for noted in site.folder.glob("began-*")) == [
        "began-1",
        "began-2",
    ]
    message = "gave up after 2 attempts: its process was ended at Celery's time limit"
    assert (site.job()["attempt"], site.job()["error_message"]) == (2, message)


def test_a_process_that_ends_over_its_memory_loses_no_job(site: Site) -> None:
    """It ends after each job, since it always has more than a kilobyte."""
    make_users(site.ledger.url, 12)
    tick.daily(site.context, DailyOptions())
    with site.worker(f"{HANDLERS}:complete_quickly", "--max-memory-per-child", "1", "--concurrency", "2"):
        completed = "SELECT count(*) = 12 FROM sync_jobs WHERE status = 'COMPLETED'"
        wait_until(lambda: site.ledger.value(completed), SECONDS, "twelve completed jobs")
    assert {job["attempt"] for job in site.ledger.jobs()} == {1}
    assert len(list(site.folder.glob("quick-*"))) == 12


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGQUIT], ids=["SIGTERM", "SIGQUIT"])
def test_a_signal_to_all_processes_hands_the_job_back(sent: signal.Signals, site: Site) -> None:
    """As a platform or a terminal sends it: nobody knows which process handles it first."""
    with site.worker("until_told", "worker.soft_shutdown_timeout=1") as worker:
        site.wait_for_attempt(1)
        os.killpg(worker.pid, sent)
        job = wait_for(site, "PENDING")
        worker.wait(SECONDS)
    assert (job["attempt"], job["interruptions"], job["error_message"]) == (1, 1, None)
    assert "job handed back" in worker.log()
    assert "attempt lost" not in worker.log()


@pytest.mark.parametrize("handler", ["hold_the_gil", "swallow_everything", "die_of_sigterm"])
def test_a_job_whose_process_does_not_hand_it_back_is_handed_back(handler: str, site: Site) -> None:
    """Nobody repairs the job here: it must be free before its lease runs out, and keep its attempt."""
    with site.worker(f"{HANDLERS}:{handler}", "worker.soft_shutdown_timeout=1") as worker:
        site.wait_for_attempt(1)
        worker.send(signal.SIGQUIT)
        job = wait_for(site, "PENDING")
    assert (job["attempt"], job["interruptions"], job["error_message"]) == (1, 1, None)
    assert job["attempts_allowed"] == 4


def test_a_stop_by_remote_control_hands_the_job_back(site: Site) -> None:
    """It sends no signal, and lets the job end; but then the platform ends the pool's processes."""
    from worker_scheduler import app

    with site.worker("until_told") as worker:
        pid = site.wait_for_attempt(1)
        worker.wait_for_log("ready.", SECONDS)
        app.control.shutdown()
        worker.wait_for_log("Got shutdown from remote", SECONDS)
        os.kill(pid, signal.SIGTERM)
        job = wait_for(site, "PENDING")
    assert (job["attempt"], job["interruptions"], job["error_message"]) == (1, 1, None)


def test_a_process_that_dies_with_a_duplicate_takes_nothing_from_the_other(site: Site) -> None:
    """A worker whose job runs, and another whose process waits to claim the same job when it is killed."""
    with site.worker("until_told") as worker, site.worker("until_told", name="other") as other:
        runs = site.wait_for_attempt(1)
        for process in (
            worker,
            other,
        ):  # while it starts, its child is the one that tries the handler's import
            process.wait_for_log("ready.", SECONDS)
        mine, theirs = (worker, other) if runs in children_of(worker) else (other, worker)
        (waits,) = children_of(theirs)
        job = site.job()
        with site.ledger.locked("sync_jobs"):
            send_again(job)
            wait_until(lambda: site.broker.unacknowledged() == 2, SECONDS, "the duplicate to be taken")
            wait_until(lambda: waits_for_a_lock(site), SECONDS, "a claim that waits")
            os.kill(waits, signal.SIGKILL)
            theirs.wait_for_log("WorkerLostError", SECONDS)
        theirs.send(signal.SIGTERM)  # what it records, it has recorded when it ends
        theirs.wait(SECONDS)
        assert (site.job()["status"], site.job()["attempt"]) == ("RUNNING", 1)
        site.go()
        assert wait_for(site, "COMPLETED")["attempt"] == 1
        assert mine.running


def children_of(worker: Process) -> list[int]:
    return [child.pid for child in psutil.Process(worker.pid).children()]


def send_again(job: dict[str, Any]) -> None:
    from worker_scheduler import app

    arguments = [str(job["user_id"]), job["partition_key"], job["triggered_by"]]
    app.send_task("sync_user", args=arguments, task_id=str(job["job_id"]), queue="daily")


def waits_for_a_lock(site: Site) -> bool:
    waiting = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND query LIKE '%attempt + 1%'"
    )
    return bool(site.ledger.value(waiting))
