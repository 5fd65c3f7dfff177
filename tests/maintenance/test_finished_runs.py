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
