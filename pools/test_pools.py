"""The table of what handlers do, times the pools. Each cell is a real worker with two users.

The first user's handler does what the row says; the second user's job is done by the same worker.
"""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from pools.handlers import FIRST_USER
from tests.support.ledger import Row as Job
from tests.support.processes import Process
from tests.support.site import Site
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick

pytestmark = pytest.mark.timeout(300)

POOLS = {
    "prefork": ("--concurrency", "1"),
    "threads": ("--concurrency", "2"),
    "gevent": ("--concurrency", "2"),
    "solo": (),
}
CAN_STOP_A_HANDLER = {"prefork", "gevent"}
SECOND_USER = "user-2"
SECONDS = 90
"""How long a test waits for what takes a few seconds on a machine that is not busy."""


@dataclass(frozen=True)
class Row:
    """A handler of `handlers.py`, and how the first user's first attempt ends."""

    handler: str
    status: str
    text: str | None = None
    variables: dict[str, str] = field(default_factory=dict)


ENDINGS = {
    "returns": Row("returns", "COMPLETED"),
    "raises": Row("raises", "FAILED", "RuntimeError: no such account"),
    "SkipJob": Row("skips", "SKIPPED", "has no repositories"),
    "coroutine": Row("returns_a_coroutine", "FAILED", "UnfinishedWork: the handler returned a coroutine"),
    "sys.exit": Row("exits", "FAILED", "SystemExit: that was it"),
}
SECOND_ATTEMPTS = {
    "RetryLater": Row("puts_off", "PENDING", "rate limited"),
    "SYNC_RETRY_ON": Row(
        "fails_once",
        "PENDING",
        "ConnectionResetError: by peer",
        {"SYNC_RETRY_ON": "ConnectionError,JobTimeout"},
    ),
}

Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def start(pool: str, site: Site) -> Start:
    """Starts a worker of the pool: start(handler, more arguments, VARIABLE="value")."""
    make_users(site.ledger.url, 2)
    tick.daily(site.context, DailyOptions())

    def start(handler: str, *arguments: str, **variables: str) -> AbstractContextManager[Process]:
        pooled = ("--pool", pool, *POOLS[pool], *arguments)
        return site.worker(f"pools.handlers:{handler}", *pooled, **variables)

    return start


def job_of(site: Site, login: str) -> Job:
    return site.ledger.row("SELECT * FROM sync_jobs WHERE github_login = %s", login)


def wait_for(site: Site, login: str, status: str, attempt: int = 1) -> Job:
    def reached() -> bool:
        job = job_of(site, login)
        return (job["status"], job["attempt"]) == (status, attempt)

    wait_until(reached, SECONDS, f"a {status} job of {login}, attempt {attempt}")
    return job_of(site, login)


def wait_for_handler(site: Site) -> None:
    wait_until(lambda: list(site.folder.glob("began-1-*")), SECONDS, "a handler that has begun")


def times_begun(site: Site) -> int:
    return len(list(site.folder.glob("began-*")))


def control(command: str, *arguments: object, reply: bool = True, **options: Any) -> Any:
    """Sends a command to the worker, and waits for its answer if it is to `reply`."""
    from worker_scheduler import app

    waiting = {"reply": True, "timeout": SECONDS, "limit": 1} if reply else {}
    return getattr(app.control, command)(*arguments, **waiting, **options)


@pytest.mark.parametrize("row", ENDINGS.values(), ids=ENDINGS)
def test_a_handler_ends_its_own_job_and_no_other(row: Row, site: Site, start: Start) -> None:
    with start(row.handler, **row.variables) as worker:
        job = wait_for(site, FIRST_USER, row.status)
        assert (job["error_message"] or "").startswith(row.text or "")
        assert (job["error_message"] is None) == (row.text is None)
        assert (job["leased_until"], job["not_before"]) == (None, None)
        wait_for(site, SECOND_USER, "COMPLETED")
        assert worker.running
        if row.status == "FAILED":  # for Celery, too
            worker.wait_for_log(f"raised expected: JobFailed('{row.text}", SECONDS)
    assert times_begun(site) == 1


@pytest.mark.parametrize("row", SECOND_ATTEMPTS.values(), ids=SECOND_ATTEMPTS)
def test_a_job_is_tried_again(row: Row, site: Site, start: Start) -> None:
    with start(row.handler, **row.variables) as worker:
        job = wait_for(site, FIRST_USER, row.status)
        assert job["error_message"] == row.text
        assert (job["not_before"] > datetime.now(UTC)) == bool(row.variables)  # else: without a delay
        wait_for(site, SECOND_USER, "COMPLETED")
        site.ledger.execute("UPDATE sync_jobs SET not_before = now() WHERE not_before IS NOT NULL")

        def completed() -> bool:
            site.reconcile()
            return bool(job_of(site, FIRST_USER)["status"] == "COMPLETED")

        wait_until(completed, SECONDS, "the second attempt")
        assert job_of(site, FIRST_USER)["attempt"] == 2
        assert worker.running
    assert times_begun(site) == 2


def test_a_handler_that_sleeps_for_too_long_ends_its_own_job(pool: str, site: Site, start: Start) -> None:
    with start("waits", JOB_TIMEOUT_SECONDS="1") as worker:
        wait_for_handler(site)
        assert wait_for(site, FIRST_USER, "FAILED")["error_message"] == "timed out after 1 s"
        if pool not in CAN_STOP_A_HANDLER:
            worker.wait_for_log("timed-out job still holds a thread", SECONDS)
        if pool == "solo":  # its only thread is still in that handler
            assert job_of(site, SECOND_USER)["status"] == "PENDING"
            site.go()
        wait_for(site, SECOND_USER, "COMPLETED")
        site.go()
        if pool not in CAN_STOP_A_HANDLER:
            worker.wait_for_log("code of a timed-out job has ended", SECONDS)
        assert worker.running
    assert (site.folder / "interrupted").exists() == (pool in CAN_STOP_A_HANDLER)
    assert (site.folder / "ended").exists() == (pool not in CAN_STOP_A_HANDLER)
    assert job_of(site, FIRST_USER)["error_message"] == "timed out after 1 s"


def test_a_job_that_is_revoked_while_it_waits_is_skipped(site: Site, start: Start) -> None:
    with start("returns", "-Q", "backfill") as worker:
        worker.wait_for_log("ready.", SECONDS)
        assert control("revoke", str(job_of(site, FIRST_USER)["job_id"]))
        assert control("add_consumer", "daily")
        job = wait_for(site, FIRST_USER, "SKIPPED", attempt=0)
        assert job["error_message"] == "revoked by Celery"
        wait_for(site, SECOND_USER, "COMPLETED")
    assert times_begun(site) == 0


def test_a_job_that_is_terminated_while_it_runs_ends_where_its_pool_can_do_that(
    pool: str, site: Site, start: Start
) -> None:
    """In threads the worker answers with an error. Solo hears of it when the handler has ended."""
    with start("waits") as worker:
        wait_for_handler(site)
        terminate = partial(control, "revoke", str(job_of(site, FIRST_USER)["job_id"]), terminate=True)
        if pool == "solo":
            terminate(reply=False)
        else:
            (answer,) = terminate()
            (said,) = answer.values()
            assert ("error" in said) == (pool == "threads"), answer
        if pool in CAN_STOP_A_HANDLER:
            assert wait_for(site, FIRST_USER, "SKIPPED")["error_message"] == "revoked by Celery"
            site.go()
        else:
            assert job_of(site, FIRST_USER)["status"] == "RUNNING"
            site.go()
            wait_for(site, FIRST_USER, "COMPLETED")
        wait_for(site, SECOND_USER, "COMPLETED")
        assert worker.running
    assert (site.folder / "ended").exists() == (pool not in CAN_STOP_A_HANDLER)
    assert times_begun(site) == 1


def test_a_worker_that_is_told_to_stop_lets_its_job_end(site: Site, start: Start) -> None:
    with start("waits") as worker:
        wait_for_handler(site)
        worker.send(signal.SIGTERM)
        worker.wait_for_log("Warm shutdown", SECONDS)
        site.go()
        assert worker.wait(SECONDS) == 0
        job = job_of(site, FIRST_USER)
        assert (job["status"], job["attempt"], job["interruptions"]) == ("COMPLETED", 1, 0)
        assert "handed back" not in worker.log()
    assert (site.folder / "ended").exists()


def test_a_deployment_lets_a_short_job_end(site: Site, start: Start) -> None:
    with start("waits", REMAP_SIGTERM="SIGQUIT") as worker:
        wait_for_handler(site)
        worker.send(signal.SIGTERM)
        site.go()
        worker.wait(SECONDS)
        job = job_of(site, FIRST_USER)
        assert (job["status"], job["attempt"], job["interruptions"]) == ("COMPLETED", 1, 0)


def test_a_deployment_hands_a_long_job_back(site: Site, start: Start) -> None:
    with start("waits", "worker.soft_shutdown_timeout=1", REMAP_SIGTERM="SIGQUIT") as worker:
        wait_for_handler(site)
        worker.send(signal.SIGTERM)
        worker.wait(SECONDS)
        require_handed_back(site, worker)


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"], indirect=True)
def test_a_second_signal_hands_a_long_job_back_at_once(site: Site, start: Start) -> None:
    """Celery's prefork pool waits for the whole time all the same."""
    with start("waits", "worker.soft_shutdown_timeout=600", REMAP_SIGTERM="SIGQUIT") as worker:
        wait_for_handler(site)
        worker.send(signal.SIGTERM)
        worker.wait_for_log("worker is being stopped", SECONDS)
        worker.send(signal.SIGTERM)
        worker.wait(SECONDS)
        require_handed_back(site, worker)


def require_handed_back(site: Site, worker: Process) -> None:
    job = job_of(site, FIRST_USER)
    assert (job["status"], job["attempt"], job["interruptions"]) == ("PENDING", 1, 1)
    assert (job["error_message"], job["leased_until"]) == (None, None)
    assert "Traceback" not in worker.log()
    assert not (site.folder / "ended").exists()


def test_a_worker_that_is_told_to_stop_at_once_hands_its_job_back(
    pool: str, site: Site, start: Start
) -> None:
    """By a deployment, whose grace ends before the job does: that costs the job no attempt."""
    with start("waits", "worker.soft_shutdown_timeout=1") as worker:
        wait_for_handler(site)
        worker.send(signal.SIGQUIT)
        job = wait_for(site, FIRST_USER, "PENDING")
        assert (job["error_message"], job["interruptions"], job["attempts_allowed"]) == (None, 1, 4)
        assert (job["leased_until"], job["not_before"] is None) == (None, False)
        site.go()
        worker.wait(SECONDS)
        assert "Unrecoverable error" not in worker.log()
        assert "set aside" not in worker.log()
    assert job_of(site, FIRST_USER)["status"] == "PENDING"
    assert times_begun(site) == 1


def test_a_second_message_of_a_job_does_nothing(site: Site, start: Start) -> None:
    from worker_scheduler import app

    job = job_of(site, FIRST_USER)
    arguments = [str(job["user_id"]), job["partition_key"], job["triggered_by"]]
    app.send_task("sync_user", args=arguments, task_id=str(job["job_id"]), queue="daily")
    assert site.broker.count("daily") == 3
    with start("returns") as worker:
        wait_for(site, FIRST_USER, "COMPLETED")
        wait_for(site, SECOND_USER, "COMPLETED")
        worker.wait_for_log("message ignored, its job is not waiting", SECONDS)
        wait_until(lambda: site.broker.unacknowledged() == 0, SECONDS, "the end of all messages")
        assert site.broker.counts() == {}
    assert times_begun(site) == 1
