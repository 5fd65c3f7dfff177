"""The rule finished_runs: a run is finished, and its jobs are counted, when its last job is."""

from datetime import timedelta

import pytest

from tests.maintenance.situations import DAY, claim, enqueue, finish
from tests.support import attempts
from tests.support.contexts import HandedClock
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.maintenance import reconciler


@pytest.mark.parametrize("left", ["PENDING", "RUNNING"])
def test_a_run_is_finished_when_its_last_job_is(
    left: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    *job_ids, last = enqueue(context, ledger, 10)
    ends = [JobStatus.COMPLETED] * 6 + [JobStatus.FAILED] * 2 + [JobStatus.SKIPPED]
    for job_id, status in zip(job_ids, ends, strict=True):
        finish(context, job_id, status)
    claimed = claim(context, last) if left == "RUNNING" else None
    assert reconciler.finished_runs(context) == 0
    run = ledger.row("SELECT * FROM sync_runs")
    assert (run["state"], run["finished_at"], run["completed"]) == ("ENQUEUED", None, None)
    with context.database.autocommit() as connection:
        assert attempts.finish(
            connection, claimed or claim(context, last), JobStatus.COMPLETED, None, clock()
        )
    clock.forward(timedelta(seconds=60))
    assert reconciler.finished_runs(context) == 1
    run = ledger.row("SELECT * FROM sync_runs")
    assert run["state"] == "FINISHED"
    assert (run["completed"], run["failed"], run["skipped"]) == (7, 2, 1)
    assert run["finished_at"] == clock()
    clock.forward(timedelta(seconds=60))
    assert reconciler.finished_runs(context) == 0
    assert ledger.row("SELECT * FROM sync_runs") == run


def test_a_run_without_users_is_finished(context: TickContext, ledger: Ledger) -> None:
    make_users(ledger.url, 0)
    tick.daily(context, DailyOptions(date=DAY))
    assert reconciler.finished_runs(context) == 1
    assert ledger.value("SELECT completed FROM sync_runs") == 0


def test_a_finished_run_that_gets_more_users_is_opened_and_finished_again(
    context: TickContext, ledger: Ledger
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    finish(context, job_id)
    assert reconciler.finished_runs(context) == 1
    for job in enqueue(context, ledger, 3):
        if job != job_id:
            finish(context, job, JobStatus.SKIPPED)
    assert reconciler.finished_runs(context) == 1
    run = ledger.row("SELECT * FROM sync_runs")
    assert (run["completed"], run["skipped"]) == (1, 2)


FIRST = "SELECT first_finished_at, first_completed, first_failed, first_skipped FROM sync_runs"
COUNTS = "SELECT finished_at, completed, failed, skipped, cancelled FROM sync_runs"


def test_the_first_end_of_a_run_is_kept(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    job_id, other = enqueue(context, ledger, 2)
    finish(context, job_id)
    finish(context, other, JobStatus.FAILED)
    assert reconciler.finished_runs(context) == 1
    first = (clock(), 1, 1, 0)
    assert tuple(ledger.row(FIRST).values()) == first
    clock.forward(timedelta(hours=1))
    for job in set(enqueue(context, ledger, 3)) - {job_id, other}:
        assert tuple(ledger.row(FIRST).values()) == first
        assert set(ledger.row(COUNTS).values()) == {None}
        finish(context, job, JobStatus.SKIPPED)
    assert reconciler.finished_runs(context) == 1
    assert tuple(ledger.row(FIRST).values()) == first
    assert tuple(ledger.row(COUNTS).values()) == (clock(), 1, 1, 1, 0)


def test_an_end_that_earlier_code_noted_is_the_first(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """A pass of earlier code that began before the migration finishes runs without first counts."""
    (job_id,) = enqueue(context, ledger, 1)
    finish(context, job_id)
    ledger.execute(
        f"UPDATE sync_runs SET state = 'FINISHED', finished_at = '{clock()}', completed = 1, failed = 0,"
        " skipped = 0"
    )
    first = (clock(), 1, 0, 0)
    clock.forward(timedelta(hours=1))
    enqueue(context, ledger, 2)
    assert tuple(ledger.row(FIRST).values()) == first


def test_cancelled_jobs_are_counted_among_the_skipped(context: TickContext, ledger: Ledger) -> None:
    for job_id in enqueue(context, ledger, 3):
        finish(context, job_id, JobStatus.SKIPPED)
    ledger.execute(
        "UPDATE sync_jobs SET cancelled_at = completed_at WHERE github_login IN ('user-1', 'user-2')"
    )
    assert reconciler.finished_runs(context) == 1
    run = ledger.row(COUNTS)
    assert (run["completed"], run["failed"], run["skipped"], run["cancelled"]) == (0, 0, 3, 2)
