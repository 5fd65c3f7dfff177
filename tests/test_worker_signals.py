"""Real workers: what signals, crashes and long handlers do to the job that runs."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.support.contexts import context_at
from tests.support.ledger import Ledger, Row
from tests.support.messages import Broker
from tests.support.processes import Process, celery
from tests.support.proxy import Proxy
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler import reconciler, tick
from worker_scheduler.clock import utc_now
from worker_scheduler.context import TickContext
from worker_scheduler.leases import Lease
from worker_scheduler.options import DailyOptions
from worker_scheduler.worker import Worker

LEASE_SECONDS = 2.0
OPTIONS = ("--loglevel", "INFO", "--without-gossip", "--without-mingle")


@dataclass
class Site:
    """A deployment whose one job waits in the queue, and the folder in which handlers note things."""

    context: TickContext
    ledger: Ledger
    broker: Broker
    environment: dict[str, str]
    folder: Path

    def job(self) -> Row:
        (job,) = self.ledger.jobs()
        return job

    @contextmanager
    def worker(self, handler: str, *arguments: str, name: str = "worker", **more: str) -> Iterator[Process]:
        """A prefork worker of one process, unless the arguments say otherwise; nothing of it is left."""
        environment = self.environment | {"SYNC_HANDLER": f"tests.support.long_handlers:{handler}"} | more
        pool = () if "--pool" in arguments else ("--pool", "prefork", "--concurrency", "1")
        process = celery(
            environment, self.folder / f"{name}.log", "worker", "-Q", "daily", *pool, *OPTIONS, *arguments
        )
        process.start()
        try:
            yield process
        finally:
            # Not only while its main process lives: the pool may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def wait_for_attempt(self, attempt: int) -> int:
        """Until a handler has begun with it; the process that it runs in."""
        wait_until(lambda: list(self.folder.glob(f"began-{attempt}-*")), 30, f"attempt {attempt}")
        (noted,) = self.folder.glob(f"began-{attempt}-*")
        return int(noted.name.rpartition("-")[2])

    def wait_for(self, status: str) -> Row:
        wait_until(lambda: self.job()["status"] == status, 30, f"a {status} job")
        return self.job()

    def reconcile(self) -> dict[str, int]:
        result = reconciler.reconcile(self.context)
        assert result.errors == []
        return result.put_right

    def reconcile_until(self, status: str) -> Row:
        def passed() -> bool:
            self.reconcile()
            return bool(self.job()["status"] == status)

        wait_until(passed, 30, f"a {status} job")
        return self.job()

    def go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def site(
    deployed: None,
    ledger: Ledger,
    broker: Broker,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    own = {
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "DAILY_TICK_CRON": "0 0 29 2 *",  # no slot comes in between
        "HANDLER_FOLDER": str(tmp_path),
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    make_users(ledger.url, 1)
    with context_at(utc_now) as context:
        assert tick.daily(context, DailyOptions()).jobs_enqueued == 1
        yield Site(context, ledger, broker, environment | own, tmp_path)


# --- signals ----------------------------------------------------------------------------------------


def test_sigterm_lets_the_job_end(site: Site) -> None:
    with site.worker("until_told") as worker:
        site.wait_for_attempt(1)
        # What it runs is unacknowledged, which is how reconcile knows that it is not lost.
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
    """SIGQUIT, and SIGTERM on a platform where it is remapped."""
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
    assert began <= job["not_before"]  # due at once: it need not wait for its lease to run out
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
    """A worker that cannot reach Postgres holds the message, and dies with it."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with site.worker("until_told", DATABASE_URL=nowhere) as worker:
        wait_until(lambda: site.broker.unacknowledged() == 1, 30, "the message in a worker's hands")
        worker.kill()
    assert (site.job()["status"], site.broker.counts()) == ("PENDING", {})
    site.go()
    with site.worker("until_told", name="next", VISIBILITY_TIMEOUT_SECONDS="2"):
        assert site.wait_for("COMPLETED")["attempt"] == 1


def test_a_worker_that_died_over_its_look_for_messages_does_not_stop_the_others(site: Site) -> None:
    """Workers look one at a time, by a mutex in Redis, for what dead ones held."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    redis_url = site.environment["REDIS_URL"]
    doomed: list[int] = []

    def kill_over_a_look(data: bytes) -> None:
        # What a look asks first, once it has the mutex.
        if doomed and b"unacked_index" in data and b"BYSCORE" in data:
            os.kill(doomed[0], signal.SIGKILL)

    proxy = Proxy(redis_url, watch=kill_over_a_look)
    with proxy, site.worker("until_told", DATABASE_URL=nowhere, REDIS_URL=proxy.url) as worker:
        wait_until(lambda: site.broker.unacknowledged() == 1, 30, "the message in a worker's hands")
        doomed.append(worker.pid)
        worker.wait(60)
    with Redis.from_url(redis_url) as redis:
        assert redis.exists(f"{site.broker.key_prefix}unacked_mutex")
    site.go()
    with site.worker("until_told", name="next", VISIBILITY_TIMEOUT_SECONDS="2"):
        assert site.wait_for("COMPLETED")["attempt"] == 1


def test_sigkill_of_the_main_process_is_repaired_by_reconcile(site: Site) -> None:
    """The pool goes with it (Linux: the kernel sees to that), so nobody keeps the lease."""
    with site.worker("until_told") as worker:
        pid = site.wait_for_attempt(1)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(30)
        wait_until(lambda: not _lives(pid), 10, "the end of the pool's process")
        assert site.job()["status"] == "RUNNING"
        with site.worker("until_told", name="next"):
            job = site.reconcile_until("COMPLETED")
    assert job["attempt"] == 2


def test_sigkill_of_the_pool_process_is_repaired_by_reconcile(site: Site) -> None:
    """The main process goes on, makes a new one, and no longer keeps the lease."""
    with site.worker("until_told") as worker:
        os.kill(site.wait_for_attempt(1), signal.SIGKILL)
        worker.wait_for_log("WorkerLostError")
        assert site.job()["status"] == "RUNNING"
        job = site.reconcile_until("COMPLETED")
        assert worker.running
    assert job["attempt"] == 2


def _lives(pid: int) -> bool:
    """Whether there is such a process, and more of it than its exit status."""
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
    """By its thread alone: in somebody else's worker there is no main process of ours."""
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
    """It does nothing any more, its heartbeat included; the main process beats for it."""
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
    """Given up on, it can finish nothing: its successor has."""
    with (
        site.worker("hold_the_gil_then_fail", "--pool", "solo", name="slow") as slow,
        site.worker("hold_the_gil_then_fail", "--pool", "solo", name="other"),
    ):
        job = site.reconcile_until("COMPLETED")
        assert job["attempt"] == 2
        slow_or_other = [site.folder / f"{name}.log" for name in ("slow", "other")]
        wait_until(
            lambda: any("its result is dropped" in log.read_text() for log in slow_or_other),
            30,
            "the slow one's end",
        )
        assert slow.running
    assert site.job() == job


# --- retries, other people's tasks, other people's messages ---------------------------------------------


def test_retry_later_comes_back_through_reconcile(site: Site) -> None:
    with site.worker("once_more"):
        site.wait_for_attempt(1)
        job = site.wait_for("PENDING")
        assert (job["attempt"], job["error_message"], job["leased_until"]) == (1, "not yet", None)
        job = site.reconcile_until("COMPLETED")
    assert (job["attempt"], job["error_message"]) == (2, None)


def test_somebody_elses_task_claims_jobs(site: Site) -> None:
    make_users(site.ledger.url, 5)
    tick.daily(site.context, DailyOptions())
    command = celery(site.environment, site.folder / "theirs.log", "worker", "-Q", "daily", *OPTIONS)
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
    """What an attacker would have a worker unpickle."""

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
    # The pickled one first, so that the real one shows that the worker has gone on.
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
