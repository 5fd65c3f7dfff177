"""The rule abandoned_runs: half-planned runs go on, and batches that were not enqueued are dispatched."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from tests.maintenance.situations import (
    BATCH_LEASE,
    DAY,
    KEY,
    LEASE,
    batch_not_enqueued,
    each_once,
    half_planned,
    open_run,
    sent,
)
from tests.support.contexts import INSTANT, HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.selections import selection_of
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import runs
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance import reconciler


@pytest.mark.parametrize("age", [timedelta(0), LEASE - INSTANT])
def test_a_run_whose_planner_may_live_is_left_alone(
    age: timedelta, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    half_planned(context, ledger, leased_until=clock() + LEASE)
    clock.forward(age)
    before = ledger.everything()
    assert reconciler.abandoned_runs(context) == 0
    assert ledger.everything() == before
    assert broker.counts() == {}


def test_a_half_planned_run_goes_on_from_its_cursor(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    half_planned(context, ledger, leased_until=clock() + LEASE)
    planned = {job["job_id"] for job in ledger.jobs(KEY)}
    # Planning from the start would find this user.
    ledger.execute(f"INSERT INTO users VALUES ('{UUID(int=1)}', 'before-the-cursor')")
    clock.forward(LEASE)
    assert reconciler.abandoned_runs(context) == 1
    job_ids = [job["job_id"] for job in ledger.jobs(KEY)]
    assert len(job_ids) == 25
    assert planned < set(job_ids)
    assert UUID(int=1) not in {job["user_id"] for job in ledger.jobs(KEY)}
    assert sent(broker) == each_once(job_ids)
    run = ledger.row("SELECT * FROM sync_runs")
    assert (run["state"], run["jobs"], run["batches"]) == ("ENQUEUED", 25, 3)
    assert run["leased_until"] is None
    assert reconciler.abandoned_runs(context) == 0
    assert sent(broker) == each_once(job_ids)


def test_a_run_without_a_single_job_is_planned(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    make_users(ledger.url, 25)
    open_run(context, leased_until=clock())
    assert reconciler.abandoned_runs(context) == 1
    assert sent(broker) == each_once([job["job_id"] for job in ledger.jobs(KEY)])
    assert ledger.count(KEY) == 25


def test_only_the_chosen_users_are_planned(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    make_users(ledger.url, 25)
    chosen = [row["id"] for row in ledger.rows("SELECT id FROM users ORDER BY id LIMIT 12")]
    with context.database.transaction() as connection:
        selection = selection_of(connection, chosen)
        new = NewRun(uuid4(), "backfill:x", Kind.BACKFILL, "scheduler.backfill", 30, selection, None, None)
        assert runs.open_run(connection, new, clock(), clock())
    assert reconciler.abandoned_runs(context) == 1
    found = ledger.jobs("backfill:x")
    assert {job["user_id"] for job in found} == set(chosen)
    assert {job["backfill_days"] for job in found} == {30}


@pytest.mark.parametrize(
    ("age", "sent_again"), [(timedelta(0), 0), (BATCH_LEASE - INSTANT, 0), (BATCH_LEASE, 5)]
)
def test_a_batch_is_dispatched_when_its_lease_ran_out(
    age: timedelta,
    sent_again: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    batch_not_enqueued(context, ledger, claimed_until=clock() + BATCH_LEASE)
    broker.lose_everything()
    # Five of its ten jobs are done: only the jobs that wait need a message.
    ledger.execute(
        "UPDATE sync_jobs SET status = 'COMPLETED' WHERE job_id IN (SELECT j.job_id FROM sync_jobs j"
        " JOIN sync_batches b ON b.number = 1 AND j.job_id BETWEEN b.first_job_id AND b.last_job_id"
        " ORDER BY j.job_id LIMIT 5)"
    )
    clock.forward(age)
    reconciler.abandoned_runs(context)
    assert broker.counts() == ({"daily": sent_again} if sent_again else {})
    state = ledger.value("SELECT state FROM sync_runs")
    assert state == ("ENQUEUED" if sent_again else "DISPATCHING")
    reconciler.abandoned_runs(context)
    assert broker.counts() == ({"daily": sent_again} if sent_again else {})


def test_a_run_that_must_wait_holds_up_no_other(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """The older run has a batch that another dispatcher still holds; the younger one is half done."""
    batch_not_enqueued(context, ledger, claimed_until=clock() + BATCH_LEASE)
    clock.forward(timedelta(seconds=1))
    tick.daily(context, DailyOptions(date=DAY + timedelta(days=1)))
    broker.lose_everything()
    younger = f"daily:{DAY + timedelta(days=1)}"
    ledger.execute(
        "UPDATE sync_batches SET enqueued_at = NULL, broker_epoch = NULL, generation = 1"
        f" WHERE run_id = (SELECT run_id FROM sync_runs WHERE partition_key = '{younger}')",
        f"UPDATE sync_runs SET state = 'DISPATCHING' WHERE partition_key = '{younger}'",
    )
    reconciler.abandoned_runs(context)
    assert sent(broker) == each_once([job["job_id"] for job in ledger.jobs(younger)])


def test_a_batch_is_free_before_its_run_is(context: TickContext) -> None:
    """So a process that takes over a run from a dead tick finds all its batches free."""
    settings = context.settings
    assert settings.batch_lease.seconds < settings.lease.seconds
