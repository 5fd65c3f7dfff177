"""`celery control revoke` and `terminate`: the job ends as SKIPPED, whichever process writes first."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from celery import Celery

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.processes import Process
from tests.support.site import Site
from tests.support.waiting import wait_until
from worker_scheduler.wiring import process_worker
from worker_scheduler.worker import RetryLater, SyncJob

Scheduler = Callable[..., Outcome]

POOLS = [
    ("--pool", "prefork", "--concurrency", "1"),
    ("--pool", "threads", "--concurrency", "1"),
    ("--pool", "solo"),
]


def the_app() -> Celery:
    from worker_scheduler import app

    return app


@contextmanager
def idle_worker(site: Site, *arguments: str, handler: str = "until_told") -> Iterator[Process]:
    """A worker that takes no job before `take_jobs`."""
    with site.worker(handler, *arguments, "-Q", "backfill") as worker:
        worker.wait_for_log("ready.")
        yield worker


def take_jobs() -> None:
    assert the_app().control.add_consumer("daily", reply=True, timeout=5)


def revoke(job_id: object, **options: object) -> None:
    assert the_app().control.revoke(str(job_id), reply=True, timeout=5, **options)


def assert_skipped(job: dict[str, object]) -> None:
    assert (job["status"], job["error_message"]) == ("SKIPPED", "revoked by Celery")
    assert job["completed_at"] is not None
    assert (job["leased_until"], job["not_before"]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool[1])
def test_a_job_that_is_revoked_while_it_waits_is_skipped(pool: tuple[str, ...], site: Site) -> None:
    with idle_worker(site, *pool) as worker:
        revoke(site.job()["job_id"])
        take_jobs()
        assert_skipped(site.wait_for("SKIPPED"))
        worker.wait_for_log("job skipped, it was revoked")
        assert not list(site.folder.glob("began-*"))
    assert site.job()["attempt"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGKILL"])
def test_a_job_that_is_terminated_while_it_runs_is_skipped(sent: str, site: Site) -> None:
    """Its process hands it back, in a race with the worker's main process."""
    with site.worker("until_told") as worker:
        pid = site.wait_for_attempt(1)
        revoke(site.job()["job_id"], terminate=True, signal=sent)
        assert_skipped(site.wait_for("SKIPPED"))
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 30, "the end of the process")
        site.reconcile()
        time.sleep(0.5)  # for whatever might still change the row
        assert_skipped(site.job())
        assert worker.running
    assert site.job()["attempt"] == 1


@pytest.mark.slow
def test_a_job_that_is_revoked_but_not_terminated_runs_to_its_end(site: Site) -> None:
    with site.worker("until_told"):
        site.wait_for_attempt(1)
        revoke(site.job()["job_id"])
        site.go()
        assert site.wait_for("COMPLETED")["attempt"] == 1


@pytest.mark.slow
def test_a_job_that_is_revoked_before_its_next_attempt_is_skipped(site: Site) -> None:
    with site.worker("once_more"):
        site.wait_for_attempt(1)
        site.wait_for("PENDING")
        revoke(site.job()["job_id"])
        assert_skipped(site.reconcile_until("SKIPPED"))


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool[1])
def test_a_message_that_expired_is_not_a_revoke(pool: tuple[str, ...], site: Site) -> None:
    job = site.job()
    arguments = [str(job["user_id"]), job["partition_key"], job["triggered_by"]]
    (message,) = site.broker.messages("daily")
    site.broker.lose_queue("daily")
    the_app().send_task(
        "sync_user",
        args=arguments,
        task_id=message.task_id,
        queue="daily",
        expires=datetime.now(UTC) - timedelta(seconds=9),
    )
    site.go()
    with site.worker("until_told", *pool) as worker:
        worker.wait_for_log("Discarding revoked task")
        time.sleep(0.5)  # for whatever might change the row
        assert (site.job()["status"], site.job()["attempt"]) == ("PENDING", 0)
        the_app().send_task("sync_user", args=arguments, task_id=message.task_id, queue="daily")
        assert site.wait_for("COMPLETED")["attempt"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("revoked", "status"), [("a", "SKIPPED"), ("b", "PENDING")])
def test_a_revoke_by_stamps_is_of_their_values(revoked: str, status: str, site: Site) -> None:
    """Celery discards both messages, one of them only because it expired."""
    job = site.job()
    site.broker.lose_queue("daily")
    the_app().send_task(
        "sync_user",
        args=[str(job["user_id"]), job["partition_key"], job["triggered_by"]],
        task_id=str(job["job_id"]),
        queue="daily",
        headers={"stamped_headers": ["tenant"], "stamps": {"tenant": ["a"]}},
        expires=datetime.now(UTC) - timedelta(seconds=9),
    )
    with idle_worker(site, "--pool", "solo") as worker:
        assert the_app().control.revoke_by_stamped_headers({"tenant": [revoked]}, reply=True, timeout=5)
        take_jobs()
        worker.wait_for_log("Discarding revoked task")
        worker.send(signal.SIGTERM)
        worker.wait(30)  # it has recorded what there is to record
    assert site.job()["status"] == status


@pytest.mark.slow
def test_a_process_that_is_killed_by_somebody_else_is_not_a_revoke(site: Site) -> None:
    with site.worker("until_told") as worker:
        os.kill(site.wait_for_attempt(1), signal.SIGKILL)
        worker.wait_for_log("WorkerLostError")
        assert site.reconcile_until("COMPLETED")["attempt"] == 2


@pytest.mark.slow
def test_a_worker_that_is_stopped_records_what_was_revoked(site: Site) -> None:
    """The row is locked, so the end cannot be recorded before the worker is told to stop."""
    with idle_worker(site, "--pool", "solo") as worker:
        revoke(site.job()["job_id"])
        with site.ledger.locked("sync_jobs"):
            take_jobs()
            worker.wait_for_log("Discarding revoked task")
            worker.send(signal.SIGTERM)
            worker.wait_for_log("Warm shutdown")
        worker.wait(30)
    assert_skipped(site.job())


@pytest.mark.parametrize("first", ["the process that hands it back", "the main process"])
def test_both_orders_of_the_race_end_alike(
    first: str, deployed: None, job_id: UUID, ledger: Ledger
) -> None:
    def terminated(job: SyncJob) -> None:
        if first == "the main process":
            process_worker().skip_revoked(job_id, killed=True)
        raise SystemExit(signal.SIGTERM - 256)

    with pytest.raises(SystemExit):
        process_worker().run(job_id, terminated)
    if first == "the process that hands it back":
        assert ledger.job(job_id)["status"] == "PENDING"
        process_worker().skip_revoked(job_id, killed=True)
    assert_skipped(ledger.job(job_id))


def test_the_race_is_won_over_an_attempt_that_began_in_between(
    deployed: None, job_id: UUID, ledger: Ledger
) -> None:
    def later(job: SyncJob) -> None:
        raise RetryLater("not yet", delay=0)

    def revoked(job: SyncJob) -> None:
        process_worker().skip_revoked(job_id, killed=True)

    process_worker().run(job_id, later)
    process_worker().run(job_id, revoked)
    assert_skipped(ledger.job(job_id))
    assert ledger.job(job_id)["attempt"] == 2


@pytest.mark.parametrize("status", ["RUNNING", "COMPLETED", "FAILED", "SKIPPED"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_job_that_does_not_wait_stays_as_it_is(
    status: str, killed: bool, deployed: None, job_id: UUID, ledger: Ledger
) -> None:
    ledger.execute(f"UPDATE sync_jobs SET status = '{status}', attempt = 1")
    before = ledger.job(job_id)
    process_worker().skip_revoked(job_id, killed)
    if status == "RUNNING" and killed:
        assert_skipped(ledger.job(job_id))
    else:
        assert ledger.job(job_id) == before
