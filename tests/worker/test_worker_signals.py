"""Real workers: what signals, crashes and long handlers do to a running job."""

import os
import pickle
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.support.processes import celery
from tests.support.proxy import Proxy
from tests.support.site import LEASE_SECONDS, OPTIONS, Site
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.leases import Lease
from worker_scheduler.worker.claims import Worker

pytestmark = pytest.mark.slow


# --- signals ----------------------------------------------------------------------------------------


def test_sigterm_lets_the_job_end(site: Site) -> None:
    with site.worker("until_told") as worker:
        site.wait_for_attempt(1)
        # The message of a running job is unacknowledged; so reconcile knows that it is not lost.
        assert site.context.broker.depth("daily") == 1
        worker.send(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown")
        site.go()
        assert worker.wait(30) == 0
    job = site.job()
    assert (job["status"], job["attempt"]) == ("COMPLETED", 1)
    assert site.context.broker.depth("daily") == 0


@pytest.mark.parametrize("sent", ["SIGQUIT", "SIGTERM"])
def test_soft_shutdown_lets_a_short_job_end(sent: str, site: Site) -> None:
    """By SIGQUIT, or by SIGTERM where Celery remaps it."""
    remapped = {"REMAP_SIGTERM": "SIGQUIT"} if sent == "SIGTERM" else {}
    with site.worker("until_told", "worker.soft_shutdown_timeout=2", **remapped) as worker:
        site.wait_for_attempt(1)
        worker.send(signal.Signals[sent])
        worker.wait_for_log("Initiating Soft Shutdown")
        site.go()
        worker.wait(30)
    job = site.job()
    assert (job["status"], job["attempt"]) == ("COMPLETED", 1)


@pytest.mark.parametrize("sent", ["SIGQUIT", "SIGTERM"])
def test_soft_shutdown_hands_a_long_job_back(sent: str, site: Site) -> None:
    remapped = {"REMAP_SIGTERM": "SIGQUIT"} if sent == "SIGTERM" else {}
    with site.worker("until_told", "worker.soft_shutdown_timeout=1", **remapped) as worker:
        site.wait_for_attempt(1)
        worker.send(signal.Signals[sent])
        began = datetime.now(UTC)
        job = site.wait_for("PENDING")
        worker.wait(30)
    assert (job["attempt"], job["leased_until"]) == (1, None)
    assert began <= job["not_before"]  # due at once, before its lease runs out
    assert "job handed back" in worker.log()
    with site.worker("until_told", name="next"):
        site.wait_for_attempt(2)
        job = site.wait_for("COMPLETED")
    assert job["attempt"] == 2


def test_sigkill_of_all_processes_is_repaired_by_reconcile(site: Site) -> None:
    with site.worker("until_told") as worker:
        site.wait_for_attempt(1)
        worker.kill()
    job = site.job()
    assert (job["status"], job["attempt"]) == ("RUNNING", 1)
    with site.worker("until_told", name="next"):
        job = site.reconcile_until("COMPLETED")
    assert job["attempt"] == 2


def test_a_message_of_a_worker_that_died_before_its_claim_comes_again(site: Site) -> None:
    """A worker that cannot reach Postgres holds the message when it is killed."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with site.worker("until_told", DATABASE_URL=nowhere) as worker:
        wait_until(lambda: site.broker.unacknowledged() == 1, 30, "a worker to take the message")
        worker.kill()
    assert (site.job()["status"], site.broker.counts()) == ("PENDING", {})
    site.go()
    with site.worker("until_told", name="next", VISIBILITY_TIMEOUT_SECONDS="2"):
        assert site.wait_for("COMPLETED")["attempt"] == 1


def test_a_worker_that_died_over_its_look_for_messages_does_not_stop_the_others(site: Site) -> None:
    """A mutex in Redis lets one worker at a time look for the messages that dead workers held."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    redis_url = site.environment["REDIS_URL"]
    doomed: list[int] = []

    def kill_over_a_look(data: bytes) -> None:
        # The first command of a look, once it has the mutex.
        if doomed and b"unacked_index" in data and b"BYSCORE" in data:
            os.kill(doomed[0], signal.SIGKILL)

    proxy = Proxy(redis_url, watch=kill_over_a_look)
    with proxy, site.worker("until_told", DATABASE_URL=nowhere, REDIS_URL=proxy.url) as worker:
        wait_until(lambda: site.broker.unacknowledged() == 1, 30, "a worker to take the message")
        doomed.append(worker.pid)
        worker.wait(60)
    with Redis.from_url(redis_url) as redis:
        assert redis.exists(f"{site.broker.key_prefix}unacked_mutex")
    site.go()
    with site.worker("until_told", name="next", VISIBILITY_TIMEOUT_SECONDS="2"):
        assert site.wait_for("COMPLETED")["attempt"] == 1


def test_sigkill_of_the_main_process_is_repaired_by_reconcile(site: Site) -> None:
    """Its pool ends with it (on Linux the kernel ensures that), so no process extends the lease."""
    with site.worker("until_told") as worker:
        pid = site.wait_for_attempt(1)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(30)
        wait_until(lambda: not _lives(pid), 10, "the end of the pool's process")
        assert site.job()["status"] == "RUNNING"
        with site.worker("until_told", name="next"):
            job = site.reconcile_until("COMPLETED")
    assert job["attempt"] == 2


def _lives(pid: int) -> bool:
    """Whether a process with this id exists and is not a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


# --- heartbeats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "pool"),
    [
        ("sleep", ("--pool", "solo")),
        ("sleep", ("--pool", "threads", "--concurrency", "2")),
        ("hold_the_gil", ("--pool", "prefork", "--concurrency", "1")),
    ],
    ids=["solo-sleeps", "threads-sleep", "prefork-holds-the-gil"],
)
def test_a_long_handler_keeps_its_job(handler: str, pool: tuple[str, ...], site: Site) -> None:
    with site.worker(handler, *pool):
        site.wait_for_attempt(1)
        began = site.job()["started_at"]
        job = site.reconcile_until("COMPLETED")
    assert job["attempt"] == 1
    assert (job["completed_at"] - began).total_seconds() > 1.5 * LEASE_SECONDS


def test_the_body_of_a_claim_keeps_its_job(site: Site) -> None:
    """Only its thread extends the lease: another application's worker has no pool heartbeat."""
    worker = Worker(site.context.database, utc_now, Lease(1.0), max_attempts=3)
    with worker.claim(site.job()["job_id"]) as job:
        assert job is not None
        began = site.job()["started_at"]

        def outlived() -> bool:
            assert site.reconcile()["dead_workers"] == 0
            return bool((datetime.now(UTC) - began).total_seconds() > 1.5)

        wait_until(outlived, 30, "more than a lease")
    assert (site.job()["status"], site.job()["attempt"]) == ("COMPLETED", 1)


def test_a_stopped_pool_process_keeps_its_job(site: Site) -> None:
    """A stopped process cannot run its own heartbeat; the main process extends the lease for it."""
    with site.worker("until_told") as worker:
        pid = site.wait_for_attempt(1)
        os.kill(pid, signal.SIGSTOP)
        stopped = datetime.now(UTC)

        def outlived() -> bool:
            assert site.reconcile()["dead_workers"] == 0
            return (datetime.now(UTC) - stopped).total_seconds() > 1.5 * LEASE_SECONDS

        wait_until(outlived, 30, "more than a lease")
        os.kill(pid, signal.SIGCONT)
        site.go()
        assert site.wait_for("COMPLETED")["attempt"] == 1
        assert worker.running


def test_a_gil_held_in_a_solo_pool_is_not_covered_but_harmless(site: Site) -> None:
    """A worker that was given up on cannot finish the job: another attempt has."""
    with (
        site.worker("hold_the_gil_then_fail", "--pool", "solo", name="slow") as slow,
        site.worker("hold_the_gil_then_fail", "--pool", "solo", name="other"),
    ):
        job = site.reconcile_until("COMPLETED")
        assert job["attempt"] == 2
        slow_or_other = [site.folder / f"{name}.log" for name in ("slow", "other")]
        wait_until(
            lambda: any("this attempt no longer holds it" in log.read_text() for log in slow_or_other),
            30,
            "the slow one's end",
        )
        assert slow.running
    assert site.job() == job


# --- retries, another application's task, another sender's message --------------------------------------


def test_retry_later_comes_back_through_reconcile(site: Site) -> None:
    with site.worker("once_more"):
        site.wait_for_attempt(1)
        job = site.wait_for("PENDING")
        assert (job["attempt"], job["error_message"], job["leased_until"]) == (1, "not yet", None)
        job = site.reconcile_until("COMPLETED")
    assert (job["attempt"], job["error_message"]) == (2, None)


def test_another_applications_task_claims_jobs(site: Site) -> None:
    make_users(site.ledger.url, 5)
    tick.daily(site.context, DailyOptions())
    command = celery(site.environment, site.folder / "foreign.log", "worker", "-Q", "daily", *OPTIONS)
    command._command[command._command.index("worker_scheduler")] = "tests.support.foreign_app"
    command.start()
    try:
        each_once = "SELECT count(*) = 5 FROM sync_jobs WHERE attempt = 1 AND status <> 'RUNNING'"
        wait_until(lambda: site.ledger.value(each_once), 30, "the end of the five")
    finally:
        command.kill()
    jobs = {job["github_login"]: job for job in site.ledger.jobs()}
    ended = {login: (job["status"], job["error_message"]) for login, job in jobs.items()}
    assert ended == {
        "user-1": ("SKIPPED", "has no repositories"),
        "user-2": ("FAILED", "RuntimeError: no such account"),
        "user-3": ("PENDING", "rate limit"),
        "user-4": ("COMPLETED", None),
        "user-5": ("COMPLETED", None),
    }
    assert (jobs["user-3"]["not_before"] - datetime.now(UTC)).total_seconds() > 3000
    assert {job["attempt"] for job in jobs.values()} == {1}


class Explosive:
    """An object that runs code when a worker unpickles it, as an attacker would send it."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.touched,)


def test_a_pickled_message_is_refused(site: Site) -> None:
    from worker_scheduler import app

    touched = site.folder / "exploded"
    job_id = str(site.job()["job_id"])
    with app.producer_or_acquire() as producer:
        producer.publish(
            pickle.dumps(([Explosive(touched), "x", "y"], {}, {})),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            exchange="",
            routing_key="daily",
            headers={"task": "sync_user", "id": job_id, "lang": "py", "root_id": job_id},
        )
    # Moves the pickled message to the front, so that the real one shows that the worker went on.
    with Redis.from_url(site.broker.url) as redis:
        redis.lmove(f"{site.broker.key_prefix}daily", f"{site.broker.key_prefix}daily", "LEFT", "RIGHT")
    assert site.broker.count("daily") == 2
    with site.worker("until_told") as worker:
        site.go()
        site.wait_for("COMPLETED")
        worker.wait_for_log("ContentDisallowed")
        wait_until(lambda: site.broker.count("daily") == 0, 10, "an empty queue")
        assert worker.running
    assert not touched.exists()
    assert site.job()["attempt"] == 1
