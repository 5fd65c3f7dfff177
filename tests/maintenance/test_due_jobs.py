"""The rule due_jobs: a job that was put off is sent when its time has come."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from tests.maintenance.situations import (
    DAY,
    LEASE,
    RULE_NAMES,
    each_once,
    enqueue,
    lose_messages,
    put_off,
    sent,
)
from tests.support import attempts
from tests.support.contexts import INSTANT, HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import BackfillOptions, DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.maintenance import reconciler
from worker_scheduler.publisher import GroupMessage


@pytest.mark.parametrize(("age", "found"), [(timedelta(hours=1) - INSTANT, 0), (timedelta(hours=1), 1)])
def test_a_job_put_off_is_sent_when_its_time_has_come(
    age: timedelta,
    found: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    put_off(context, job_id, not_before=clock() + timedelta(hours=1))
    lose_messages(broker)
    clock.forward(age)
    assert reconciler.due_jobs(context) == found
    assert reconciler.due_jobs(context) == 0
    assert sent(broker) == (each_once([job_id]) if found else Counter())
    if found:  # and then it waits in the queue, like any other
        clock.forward(10 * LEASE)
        assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)


@pytest.mark.parametrize(("age", "found"), [(LEASE - INSTANT, 0), (LEASE, 1)])
def test_a_due_job_whose_publisher_died_is_sent_when_its_lease_ran_out(
    age: timedelta,
    found: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    lose_messages(broker)
    ledger.execute(f"UPDATE sync_jobs SET not_before = '{clock()}', leased_until = '{clock() + LEASE}'")
    clock.forward(age)
    assert reconciler.due_jobs(context) == found
    assert sent(broker) == (each_once([job_id]) if found else Counter())


def claim_behind(context: TickContext, job_id: UUID) -> ClaimedJob | None:
    """Claims a job as a worker does whose clock is a second behind."""
    now = context.clock() - timedelta(seconds=1)
    with context.database.autocommit() as connection:
        return attempts.claim(connection, job_id, now, context.settings.lease.until(now))


def test_a_clock_that_is_behind_claims_nothing_before_its_time(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    put_off(context, job_id, not_before=clock())
    assert claim_behind(context, job_id) is None


def test_a_clock_that_is_behind_claims_what_is_being_published(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """The worker gets the message before it is noted as sent; a refused claim would lose the message."""
    (job_id,) = enqueue(context, ledger, 1)
    put_off(context, job_id, not_before=clock())
    claimed: list[ClaimedJob | None] = []

    class Published:
        repeatable = True

        def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
            epochs = context.publisher.publish(groups)
            claimed.append(claim_behind(context, job_id))
            return epochs

    assert reconciler.due_jobs(replace(context, publisher=Published())) == 1
    (attempt,) = claimed
    assert attempt is not None
    assert ledger.job(job_id)["status"] == "RUNNING"
    with context.database.autocommit() as connection:
        assert attempts.finish(connection, attempt, JobStatus.COMPLETED, None, clock())


def test_due_jobs_of_several_runs_get_each_their_own_message(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    make_users(ledger.url, 2)
    tick.daily(context, DailyOptions(date=DAY))
    for days in (7, 30):
        assert tick.backfill(context, BackfillOptions(backfill_days=days)).outcome == "enqueued"
    broker.lose_everything()
    ledger.execute(f"UPDATE sync_jobs SET not_before = '{clock()}'")
    assert reconciler.due_jobs(context) == 6
    messages = broker.messages("daily") + broker.messages("backfill")
    assert [message.headers["task"] for message in messages] == ["sync_user"] * 6
    said = {}
    for message in messages:
        arguments, keywords, _ = message.body
        said[message.task_id] = [*arguments, keywords]
    assert said == {
        str(job["job_id"]): [
            *(str(job["user_id"]), job["partition_key"], job["triggered_by"]),
            {} if job["backfill_days"] is None else {"backfill_days": job["backfill_days"]},
        ]
        for job in ledger.jobs()
    }
    assert broker.counts() == {"daily": 2, "backfill": 4}


def test_more_due_jobs_than_one_step_takes(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    job_ids = enqueue(context, ledger, 35)
    lose_messages(broker)
    ledger.execute(f"UPDATE sync_jobs SET not_before = '{clock()}'")
    assert reconciler.due_jobs(context) == 35
    assert sent(broker) == each_once(job_ids)
