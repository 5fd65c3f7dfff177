"""JOB_TIMEOUT_SECONDS in real workers: what each pool does with a handler that takes too long."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.site import Site
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick

pytestmark = pytest.mark.slow

HANDLERS = "tests.support.limited_handlers"
SECONDS = 90
"""How long a test waits for what takes a few seconds on a machine that is not busy."""

PREFORK = ("--pool", "prefork", "--concurrency", "1")
GEVENT = ("--pool", "gevent", "--concurrency", "2")
THREADS = ("--pool", "threads", "--concurrency", "2")
SOLO = ("--pool", "solo")


def named(pool: tuple[str, ...]) -> str:
    return pool[1]


def add_user(site: Site) -> None:
    """A second user, whose job is behind the first one's in the queue."""
    make_users(site.ledger.url, 2)
    tick.daily(site.context, DailyOptions())


def job_of(site: Site, login: str) -> dict[str, Any]:
    return site.ledger.row("SELECT * FROM sync_jobs WHERE github_login = %s", login)


def wait_for(site: Site, login: str, status: str) -> dict[str, Any]:
    wait_until(lambda: job_of(site, login)["status"] == status, SECONDS, f"a {status} job of {login}")
    return job_of(site, login)


def timed_out(job: dict[str, Any], seconds: int = 1) -> bool:
    return bool((job["error_message"], job["attempt"]) == (f"timed out after {seconds} s", 1))


@pytest.mark.parametrize("pool", [PREFORK, GEVENT], ids=named)
def test_a_handler_that_sleeps_is_interrupted_and_cleans_up(pool: tuple[str, ...], site: Site) -> None:
    add_user(site)
    with site.worker(f"{HANDLERS}:clean_up", *pool, JOB_TIMEOUT_SECONDS="1") as worker:
        assert timed_out(wait_for(site, "user-1", "FAILED"))
        assert timed_out(wait_for(site, "user-2", "FAILED"))
        assert (site.folder / "cleaned").exists()
        worker.wait_for_log("JobFailed", SECONDS)
    began = {noted.name.rpartition("-")[2] for noted in site.folder.glob("began-1-*")}
    assert len(began) == 1  # both in one process, which was not replaced


@pytest.mark.parametrize("pool", [THREADS, SOLO], ids=named)
def test_a_handler_in_a_thread_goes_on_without_its_job(pool: tuple[str, ...], site: Site) -> None:
    add_user(site)
    with site.worker(f"{HANDLERS}:wait", *pool, JOB_TIMEOUT_SECONDS="1") as worker:
        job = wait_for(site, "user-1", "FAILED")
        assert timed_out(job)
        worker.wait_for_log("timed-out job still holds a thread", SECONDS)
        (line,) = [line for line in worker.log().splitlines() if "still holds a thread" in line]
        assert f"user_id={job['user_id']}" in line
        assert "github_login=user-1" in line
        if pool == THREADS:  # solo has one thread
            wait_for(site, "user-2", "COMPLETED")
            assert "code of a timed-out job has ended" not in worker.log()
        site.go()
        worker.wait_for_log("code of a timed-out job has ended", SECONDS)
        wait_for(site, "user-2", "COMPLETED")
    assert timed_out(job_of(site, "user-1"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("handler", ["swallow", "hold_the_gil"])
def test_a_process_whose_job_goes_on_is_replaced(handler: str, site: Site) -> None:
    """30 s after the limit; the next job runs in the next process."""
    add_user(site)
    with site.worker(f"{HANDLERS}:{handler}", *PREFORK, JOB_TIMEOUT_SECONDS="1") as worker:
        pid = site.wait_for_attempt(1)
        assert timed_out(wait_for(site, "user-1", "FAILED"))
        said = "process killed, its job went on after its time limit"
        worker.wait_for_log(said, SECONDS)
        (line,) = [line for line in worker.log().splitlines() if said in line]
        job = job_of(site, "user-1")
        named = (
            f"partition_key={job['partition_key']} user_id={job['user_id']} github_login=user-1 pid={pid}"
        )
        assert f" job_id={job['job_id']} {named}" in line
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), SECONDS, "the end of the process")
        wait_for(site, "user-2", "COMPLETED")
        assert worker.running
    assert (site.folder / "swallowed").exists() == (handler == "swallow")
    assert timed_out(job_of(site, "user-1"))


@pytest.mark.timeout(300)
def test_a_greenlet_whose_job_goes_on_is_killed(site: Site) -> None:
    with site.worker(f"{HANDLERS}:swallow", *GEVENT, JOB_TIMEOUT_SECONDS="1") as worker:
        assert timed_out(wait_for(site, "user-1", "FAILED"))
        worker.wait_for_log("JobFailed", SECONDS)  # the task has ended, not only the job
    assert (site.folder / "swallowed").exists()
