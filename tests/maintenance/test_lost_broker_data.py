"""The rule lost_broker_data: each job that waits gets one new message when the broker has lost its data."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from redis import Redis

from tests.maintenance.situations import (
    DAY,
    KEY,
    RULE_NAMES,
    OvertakenBroker,
    claim,
    each_once,
    enqueue,
    finish,
    lose_messages,
    put_off,
    sent,
)
from tests.support.contexts import HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.maintenance import reconciler
from worker_scheduler.publisher import GroupMessage
from worker_scheduler.publisher.broker import OpaqueBroker


def test_lost_data_give_one_new_message_per_pending_job(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    job_ids = enqueue(context, ledger, 40)
    finish(context, job_ids[0])
    claim(context, job_ids[1])
    for job_id in job_ids[10:20]:
        finish(context, job_id, JobStatus.SKIPPED)
    first = {row["number"]: row for row in ledger.rows("SELECT * FROM sync_batches")}
    broker.lose_everything()
    assert reconciler.lost_broker_data(context) == 3
    assert broker.counts() == {}
    assert reconciler.abandoned_runs(context) == 1
    waiting = job_ids[2:10] + job_ids[20:]
    assert sent(broker) == each_once(waiting)
    for row in ledger.rows("SELECT * FROM sync_batches"):
        before = first[row["number"]]
        new = row["number"] != 1
        assert row["generation"] == (1 if new else 0)
        assert (row["group_id"] != before["group_id"]) is new
        # The batch without waiting jobs gets the new epoch too, so that no later pass looks at it.
        assert row["broker_epoch"] not in (None, before["broker_epoch"])
    assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert sent(broker) == each_once(waiting)


def test_lost_data_are_noticed_by_the_epoch_not_by_age(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    enqueue(context, ledger, 25)
    assert reconciler.lost_broker_data(context) == 0
    with Redis.from_url(broker.url) as redis:
        redis.delete(f"{broker.key_prefix}worker_scheduler:epoch")
    assert reconciler.lost_broker_data(context) == 3


def test_data_lost_in_the_middle_of_a_tick(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """The first batches are sent before the flush, the later ones after it; no tick dies."""
    make_users(ledger.url, 30)
    reports: list[object] = []

    def flush_once(report: object) -> None:
        if not reports:
            broker.lose_everything()
        reports.append(report)

    # With a pause between batches; without one, several are sent at once.
    options = DailyOptions(date=DAY, enqueue_sleep_seconds=0.1)
    tick.daily(replace(context, on_progress=flush_once), options)
    assert broker.counts() == {"daily": 20}
    reconciler.reconcile(context)
    assert sent(broker) == each_once([job["job_id"] for job in ledger.jobs(KEY)])


def test_data_lost_twice(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    job_ids = enqueue(context, ledger, 25)
    for generation in (1, 2):
        broker.lose_everything()
        reconciler.reconcile(context)
        assert sent(broker) == each_once(job_ids)
        assert ledger.value("SELECT min(generation) FROM sync_batches") == generation


def test_a_job_put_off_waits_for_its_time_though_the_data_are_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    put_off(context, job_id, not_before=clock() + timedelta(hours=1))
    broker.lose_everything()
    reconciler.reconcile(context)
    assert broker.counts() == {}
    clock.forward(timedelta(hours=1))
    reconciler.reconcile(context)
    assert sent(broker) == each_once([job_id])


def test_a_batch_of_which_only_what_was_put_off_is_left_is_not_put_back(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Its other jobs are done, so no message of the batch can have been lost."""
    done, late = enqueue(context, ledger, 2)
    finish(context, done)
    put_off(context, late, not_before=clock() + timedelta(hours=1))
    broker.lose_everything()
    assert reconciler.lost_broker_data(context) == 0
    batch = ledger.row("SELECT enqueued_at IS NOT NULL AS enqueued, generation FROM sync_batches")
    assert batch == {"enqueued": True, "generation": 0}
    assert ledger.value("SELECT state FROM sync_runs") == "ENQUEUED"


def test_a_batch_of_which_only_what_went_out_alone_is_left_is_not_put_back(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    done, late = enqueue(context, ledger, 2)
    finish(context, done)
    put_off(context, late, not_before=clock())
    broker.lose_everything()
    assert reconciler.due_jobs(context) == 1
    assert reconciler.lost_broker_data(context) == 0
    assert ledger.value("SELECT generation FROM sync_batches") == 0
    assert ledger.value("SELECT state FROM sync_runs") == "ENQUEUED"


def test_data_lost_while_a_pass_is_slow(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """It read the broker epoch before the flush; since then another pass has sent everything again."""
    job_ids = enqueue(context, ledger, 25)

    def flushed_and_put_right() -> None:
        broker.lose_everything()
        reconciler.reconcile(context)

    slow = OvertakenBroker(context.broker, flushed_and_put_right)
    reconciler.lost_broker_data(replace(context, broker=slow))
    assert slow.overtaken
    reconciler.reconcile(context)
    assert sent(broker) == each_once(job_ids)


def test_a_run_closed_while_a_batch_was_put_back_is_opened_again(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    job_ids = enqueue(context, ledger, 25)
    broker.lose_everything()
    assert reconciler.lost_broker_data(context) == 3
    ledger.execute("UPDATE sync_runs SET state = 'ENQUEUED'")
    reconciler.reconcile(context)
    assert sent(broker) == each_once(job_ids)


def test_data_lost_between_two_rules_of_a_pass(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """A job that was put off is sent after the loss; its batch, put back later, is sent without it."""
    waiting, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock())
    assert reconciler.lost_broker_data(context) == 0
    broker.lose_everything()
    assert reconciler.due_jobs(context) == 1
    assert sent(broker) == each_once([late])
    for _ in range(2):
        reconciler.reconcile(context)
        assert sent(broker) == each_once([waiting, late])


def test_a_broker_that_comes_back_in_the_middle_of_a_pass(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """It comes back empty, and only after the pass has asked for the broker epoch."""
    waiting, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock())
    broker.lose_everything()

    class Starting(OpaqueBroker):
        def epoch(self) -> UUID | None:
            raise StoreUnavailable("connection refused")

        def depth(self, queue: str) -> int | None:
            return context.broker.depth(queue)

    assert len(reconciler.reconcile(replace(context, broker=Starting())).errors) == 1
    assert sent(broker) == each_once([late])
    reconciler.reconcile(context)
    assert sent(broker) == each_once([waiting, late])


def test_what_went_out_alone_is_lost_with_the_data_whatever_its_batch(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    waiting, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock())
    lose_messages(broker)
    assert reconciler.due_jobs(context) == 1
    for _ in range(2):
        broker.lose_everything()
        reconciler.reconcile(context)
        assert sent(broker) == each_once([waiting, late])
        reconciler.reconcile(context)
        assert sent(broker) == each_once([waiting, late])


def test_data_lost_after_a_job_went_out_and_before_it_was_noted(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """In between, another pass has sent its batch again, without it."""
    waiting, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock())

    class Slow:
        repeatable = True

        def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
            epochs = context.publisher.publish(groups)
            broker.lose_everything()
            reconciler.reconcile(context)
            assert sent(broker) == each_once([waiting])
            return epochs

    assert reconciler.due_jobs(replace(context, publisher=Slow())) == 1
    reconciler.reconcile(context)
    assert sent(broker) == each_once([waiting, late])
