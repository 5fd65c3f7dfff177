"""The rule lost_messages: a message that is neither in its queue nor with a worker is sent again."""

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from redis import Redis

from tests.maintenance.probe_queue import Queue
from tests.maintenance.situations import (
    DAY,
    GRACE,
    KEY,
    RULE_NAMES,
    OvertakenBroker,
    claim,
    each_once,
    enqueue,
    finish,
    lose_messages,
    probes_in,
    put_off,
    sent,
    unacknowledged,
)
from tests.support.contexts import INSTANT, HandedClock
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from worker_scheduler.config.options import BackfillOptions, DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import waiting_jobs
from worker_scheduler.maintenance import reconciler


@pytest.mark.parametrize(("age", "found"), [(GRACE - INSTANT, 0), (GRACE, 3)])
def test_a_lost_message_is_sent_again_after_the_grace_time(
    age: timedelta,
    found: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    job_ids = enqueue(context, ledger, 5)
    finish(context, job_ids[0])
    claim(context, job_ids[1])
    lose_messages(broker)
    clock.forward(age)
    assert reconciler.lost_messages(context) == found
    assert reconciler.lost_messages(context) == 0
    assert reconciler.due_jobs(context) == found
    assert sent(broker) == (each_once(job_ids[2:]) if found else Counter())
    assert reconciler.lost_messages(context) == reconciler.due_jobs(context) == 0
    assert ledger.job(job_ids[2])["attempt"] == 0  # no worker has claimed it


def test_nothing_is_lost_while_the_queue_holds_a_message(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    enqueue(context, ledger, 5)
    with Redis.from_url(broker.url) as redis:
        redis.ltrim(f"{broker.key_prefix}daily", 0, 0)
    clock.forward(10 * GRACE)
    assert reconciler.lost_messages(context) == 0
    lose_messages(broker)
    assert reconciler.lost_messages(context) == 5


@pytest.mark.parametrize(("routing_key", "found"), [("daily", 0), ("backfill", 2), ("scheduler", 2)])
def test_nothing_is_lost_while_a_worker_may_hold_it(
    routing_key: str,
    found: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    enqueue(context, ledger, 2)
    lose_messages(broker)
    unacknowledged(broker, routing_key)
    clock.forward(GRACE)
    assert reconciler.lost_messages(context) == found


def test_a_job_that_runs_holds_only_its_own_message(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Jobs that never end, in a pool that is full of them, hide no loss. A message in the queue does."""
    queue = Queue(context, broker)
    job_ids = enqueue(context, ledger, 5)
    for job_id in job_ids[:2]:
        queue.hold(queue.lose(job_id))
    queue.lose(job_ids[3]), queue.lose(job_ids[4])
    claim(context, job_ids[0])
    clock.forward(GRACE)
    assert reconciler.lost_messages(context) == 0  # one waits, and one is held by a worker before its claim
    queue.lose(job_ids[2])
    assert reconciler.lost_messages(context) == 0
    claim(context, job_ids[1])
    assert reconciler.lost_messages(context) == 3
    assert {job["job_id"] for job in ledger.jobs() if job["not_before"]} == set(job_ids[2:])


def test_a_job_that_runs_in_the_other_queue_does_not_hide_a_message_of_this_one(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    queue = Queue(context, broker)
    daily = enqueue(context, ledger, 2)
    clock.forward(timedelta(seconds=1))
    tick.backfill(context, BackfillOptions(backfill_days=1, confirm=True))
    other = ledger.value("SELECT job_id FROM sync_jobs WHERE triggered_by <> 'scheduler.daily' LIMIT 1")
    with Redis.from_url(broker.url) as redis:
        (raw,) = [m.raw for m in broker.messages("backfill") if m.task_id == str(other)]
        redis.hset(queue.unacked, "tag", json.dumps([raw, "", "backfill"]))
    claim(context, other)
    clock.forward(timedelta(seconds=1))
    # The backfill lies between two daily runs.
    tick.daily(context, DailyOptions(date=DAY + timedelta(days=1)))
    for job_id in [job["job_id"] for job in ledger.jobs() if job["triggered_by"] == "scheduler.daily"]:
        if job_id != daily[1]:
            queue.lose(job_id)
    clock.forward(GRACE)
    assert reconciler.lost_messages(context) == 0  # one daily job's message waits


def test_a_message_between_queue_and_unacked_is_seen_by_the_second_look(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    enqueue(context, ledger, 1)
    lose_messages(broker)
    clock.forward(GRACE)
    waits: list[float] = []

    def worker_notes_it(seconds: float) -> None:
        waits.append(seconds)
        unacknowledged(broker, "daily")

    assert reconciler.lost_messages(replace(context, pause=worker_notes_it)) == 0
    assert waits == [1.0]


def test_a_young_run_says_nothing_about_an_old_one(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Each run has its own grace time, which starts with its own last batch."""
    (old,) = enqueue(context, ledger, 1)
    lose_messages(broker)
    clock.forward(GRACE)
    tick.daily(context, DailyOptions(date=DAY + timedelta(days=1)))
    lose_messages(broker)
    assert reconciler.lost_messages(context) == 1
    assert ledger.job(old)["not_before"] == clock()


def test_a_loss_is_seen_by_one_of_two_that_look_at_once(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Another pass sends the message again right after this pass looks the second time."""
    job_ids = enqueue(context, ledger, 5)
    lose_messages(broker)
    clock.forward(GRACE)
    slow = OvertakenBroker(context.broker, lambda: reconciler.reconcile(context))
    assert reconciler.lost_messages(replace(context, broker=slow)) == 0
    assert slow.overtaken
    reconciler.reconcile(context)
    assert sent(broker) == each_once(job_ids)


def test_users_who_are_added_during_a_pass_are_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """A tick adds users right after this pass looks the second time."""
    job_ids = enqueue(context, ledger, 5)
    for job_id in job_ids[1:]:
        finish(context, job_id)
    lose_messages(broker)
    clock.forward(GRACE)
    slow = OvertakenBroker(context.broker, lambda: enqueue(context, ledger, 9))
    assert reconciler.lost_messages(replace(context, broker=slow)) == 0
    assert slow.overtaken
    new = [job["job_id"] for job in ledger.jobs(KEY) if job["job_id"] not in job_ids]
    assert sent(broker) == each_once(new)
    # The queue now holds messages; once they are done, the lost one is found.
    for job_id in new:
        finish(context, job_id)
    lose_messages(broker)
    clock.forward(GRACE)
    reconciler.reconcile(context)
    assert sent(broker) == each_once(job_ids[:1])


def test_a_job_that_is_sent_again_after_the_second_look_is_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Another pass sends a job that was put off, right after this pass saw the queue empty."""
    lost, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock() + GRACE)
    lose_messages(broker)
    clock.forward(GRACE)
    slow = OvertakenBroker(context.broker, lambda: reconciler.due_jobs(context))
    assert reconciler.lost_messages(replace(context, broker=slow)) == 0
    assert slow.overtaken
    reconciler.reconcile(context)
    assert sent(broker) == each_once([late])
    # The queue now holds a message; once that is done, the lost one is found.
    finish(context, late)
    lose_messages(broker)
    clock.forward(GRACE)
    reconciler.reconcile(context)
    assert sent(broker) == each_once([lost])


def test_a_job_that_is_sent_again_after_it_was_read_is_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """The same a moment later: between the two statements of this pass."""
    lost, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock())
    assert reconciler.due_jobs(context) == 1
    lose_messages(broker)
    clock.forward(GRACE)
    (run_id,) = {job["run_id"] for job in ledger.jobs(KEY)}
    cutoff = clock() - GRACE
    with context.database.autocommit() as connection:
        by_batch = waiting_jobs.page(connection, run_id, cutoff=cutoff, after=None, limit=10)
        alone = waiting_jobs.page(connection, run_id, cutoff=cutoff, after=by_batch[-1], limit=10)
        assert [job.job_id for job in [*by_batch, *alone]] == [lost, late]
        assert waiting_jobs.make_due(connection, run_id, alone, [cutoff], clock()) == 1
        assert reconciler.due_jobs(context) == 1
        assert waiting_jobs.make_due(connection, run_id, alone, [cutoff], clock()) == 0
        assert waiting_jobs.make_due(connection, run_id, by_batch, [cutoff], clock()) == 1


def test_more_lost_messages_than_one_step_marks(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    job_ids = enqueue(context, ledger, 2300)
    lose_messages(broker)
    clock.forward(GRACE)
    assert reconciler.lost_messages(context) == 2300
    assert reconciler.due_jobs(context) == 2300
    assert sent(broker) == each_once(job_ids)


def test_waiting_is_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """A queue without a worker for a week is left as it is, but for a few probes behind the rest."""
    enqueue(context, ledger, 250)
    waiting, others = broker.messages("daily"), broker.everything()
    for _ in range(14):
        clock.forward(timedelta(hours=12))
        # Keeps the days of the week from being due; those are tested in test_due_days.py.
        ledger.execute(f"UPDATE sync_origin SET since = '{clock()}'")
        assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert broker.messages("daily")[:250] == waiting
    assert len(probes_in(broker)) == len(broker.messages("daily")) - 250 <= 14
    after = broker.everything()
    assert {key: value for key, value in after.items() if "probe:" not in key} == {
        **others,
        f"{broker.key_prefix}daily": after[f"{broker.key_prefix}daily"],
    }
