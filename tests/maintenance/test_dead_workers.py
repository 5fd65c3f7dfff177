"""The rule dead_workers: a job whose lease ran out waits again, or fails after its last attempt."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.maintenance.situations import LEASE, claim, each_once, enqueue, lose_messages, sent
from tests.support import attempts
from tests.support.contexts import INSTANT, HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.maintenance import reconciler


@pytest.mark.parametrize(("age", "found"), [(LEASE - INSTANT, 0), (LEASE, 1)])
def test_a_running_job_waits_again_when_its_lease_ran_out(
    age: timedelta,
    found: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    claim(context, job_id)
    lose_messages(broker)
    clock.forward(age)
    assert reconciler.dead_workers(context) == found
    assert reconciler.dead_workers(context) == 0
    assert reconciler.due_jobs(context) == found
    job = ledger.job(job_id)
    assert (job["status"], job["attempt"]) == ("PENDING" if found else "RUNNING", 1)
    assert job["not_before"] is None
    assert sent(broker) == (each_once([job_id]) if found else Counter())


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
def test_a_job_is_given_up_on_after_sync_max_attempts(
    attempts: int, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    context = replace(context, settings=context.settings.model_copy(update={"sync_max_attempts": attempts}))
    for attempt in range(1, attempts + 1):
        assert ledger.job(job_id)["status"] == "PENDING"
        assert sent(broker) == each_once([job_id])
        assert claim(context, job_id).attempt == attempt
        lose_messages(broker)
        clock.forward(LEASE)
        reconciler.reconcile(context)
    job = ledger.job(job_id)
    assert job["status"] == "FAILED"
    assert job["error_message"] == f"gave up after {attempts} attempts: worker lost"
    assert (job["completed_at"], job["leased_until"]) == (clock(), None)
    assert broker.counts() == {}
    run = ledger.row("SELECT * FROM sync_runs")
    assert (run["state"], run["failed"]) == ("FINISHED", 1)


def test_the_default_is_three_attempts(context: TickContext) -> None:
    assert context.settings.sync_max_attempts == 3


def test_a_heartbeating_job_is_never_taken(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    claimed = claim(context, job_id)
    for _ in range(200):
        clock.forward(LEASE / 4)
        with context.database.autocommit() as connection:
            renewal = jobs.extend_leases(connection, [claimed], clock() + LEASE)
        assert (renewal.lost, renewal.held_up) == ([], [])
        clock.forward(LEASE / 4 * 3 - INSTANT)
        assert reconciler.dead_workers(context) == 0
    with context.database.autocommit() as connection:
        assert attempts.finish(connection, claimed, JobStatus.COMPLETED, None, clock())


def test_a_worker_that_was_given_up_on_can_neither_renew_nor_finish(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    slow = claim(context, job_id)
    clock.forward(LEASE)
    reconciler.reconcile(context)
    successor = claim(context, job_id)
    before = ledger.job(job_id)
    with context.database.autocommit() as connection:
        assert jobs.extend_leases(connection, [slow], clock() + 2 * LEASE).lost == [slow]
        assert not attempts.finish(connection, slow, JobStatus.FAILED, "too late", clock())
        assert not attempts.put_off(connection, slow, error_message="too late", not_before=clock())
    assert ledger.job(job_id) == before
    with context.database.autocommit() as connection:
        assert attempts.finish(connection, successor, JobStatus.COMPLETED, None, clock())
