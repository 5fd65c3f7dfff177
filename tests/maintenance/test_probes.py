"""The rule lost_messages while the queue is never empty: probes tell what must have left it."""

from dataclasses import replace
from datetime import timedelta
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy import text

from tests.maintenance.probe_queue import INTERVAL, Queue, task_id_of
from tests.maintenance.situations import (
    DAY,
    GRACE,
    KEY,
    claim,
    each_once,
    enqueue,
    finish,
    lose_messages,
    probes_in,
    put_off,
    sent,
)
from tests.support.contexts import INSTANT, HandedClock, at_once
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import by_id, waiting_jobs
from worker_scheduler.maintenance import reconciler
from worker_scheduler.probe_ids import is_probe, new_probe_id
from worker_scheduler.publisher import GroupMessage
from worker_scheduler.publisher.broker import OpaqueBroker
from worker_scheduler.publisher.choice import choose
from worker_scheduler.publisher.probe_message import probe_message


@pytest.fixture
def queue(context: TickContext, broker: Broker) -> Queue:
    return Queue(context, broker)


def fill(context: TickContext, ledger: Ledger, number: int) -> None:
    """Another run's jobs, which keep the queue filled."""
    make_users(ledger.url, 10)
    tick.daily(context, DailyOptions(date=DAY + timedelta(days=number)))


def test_a_lost_message_is_found_while_the_queue_is_never_empty(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    job_ids = enqueue(context, ledger, 10)
    lost = job_ids[4]
    queue.lose(lost)
    clock.forward(GRACE)
    for number in range(1, 4):
        assert reconciler.lost_messages(context) == (1 if number == 3 else 0)
        fill(context, ledger, number)
        # The worker is not far behind, but never done: the run that came last is left.
        queue.work(leave=10)
        clock.forward(INTERVAL)
    assert ledger.job(lost)["not_before"] is not None
    assert reconciler.due_jobs(context) == 1
    assert sent(broker)[str(lost)] == 1
    queue.work()
    assert ledger.states(KEY) == {"COMPLETED": 10}
    assert ledger.value("SELECT max(attempt) FROM sync_jobs") == 1
    reconciler.reconcile(context)
    assert ledger.value("SELECT count(*) FROM sync_suspects") == 0
    assert ledger.value("SELECT count(*) FROM sync_probes") <= 3


@pytest.mark.parametrize(("wait", "found"), [(INTERVAL - INSTANT, 0), (INTERVAL, 1)])
def test_a_message_is_lost_one_interval_after_the_second_probe_has_arrived(
    wait: timedelta,
    found: int,
    context: TickContext,
    ledger: Ledger,
    clock: HandedClock,
    queue: Queue,
) -> None:
    missed_once(context, ledger, clock, queue)
    clock.forward(INTERVAL)
    queue.work()  # the second probe arrives
    clock.forward(wait)
    assert reconciler.lost_messages(context) == found


def missed_once(context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue) -> bytes:
    """One of two messages is nowhere. The first probe has arrived, and the second one is in the queue."""
    job_ids = enqueue(context, ledger, 2)
    message = queue.lose(job_ids[0])
    clock.forward(GRACE)
    reconciler.lost_messages(context)
    queue.work()
    clock.forward(INTERVAL)
    assert reconciler.lost_messages(context) == 0
    assert ledger.value("SELECT count(*) FROM sync_suspects WHERE missed_at IS NOT NULL") == 1
    assert len(probes_in(queue.broker)) == 1
    return message


def settle(context: TickContext, clock: HandedClock, queue: Queue) -> int:
    """The second probe arrives, and one interval passes. Returns what the pass finds then."""
    for entry in queue.entries():
        if is_probe(task_id_of(entry)):
            queue.answer(entry)
    clock.forward(INTERVAL)
    return reconciler.lost_messages(context)


def test_a_message_that_nobody_has_seen_is_lost(
    context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    missed_once(context, ledger, clock, queue)
    assert settle(context, clock, queue) == 1


def test_a_message_that_a_worker_holds_is_not_missed(
    context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    """It has the message for an hour, because it is busy, and then loses it."""
    job_ids = enqueue(context, ledger, 2)
    message = queue.lose(job_ids[0])
    queue.hold(message)
    clock.forward(GRACE)
    for _ in range(60):
        assert reconciler.lost_messages(context) == 0
        queue.work()
        clock.forward(INTERVAL)
    assert ledger.value("SELECT count(*) FROM sync_suspects WHERE missed_at IS NOT NULL") == 0
    queue.let_go()
    found = []
    for _ in range(3):
        found.append(reconciler.lost_messages(context))
        queue.work()
        clock.forward(INTERVAL)
    assert found == [0, 1, 0]


@pytest.mark.parametrize("place", ["hold", "requeue", "restore"])
def test_a_message_that_appears_again_is_not_lost(
    place: str, context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    """It was nowhere for longer than an interval: on its way to a worker."""
    message = missed_once(context, ledger, clock, queue)
    getattr(queue, place)(message)
    assert settle(context, clock, queue) == 0
    assert settle(context, clock, queue) == 0
    assert ledger.value("SELECT count(*) FROM sync_jobs WHERE not_before IS NOT NULL") == 0


def test_a_message_that_is_put_back_again_and_again_is_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    """Each time behind the probes, and no look finds it with a worker."""
    job_ids = enqueue(context, ledger, 5)
    clock.forward(GRACE)
    for _ in range(10):
        assert reconciler.lost_messages(context) == 0
        for entry in reversed(queue.entries()):
            if is_probe(task_id_of(entry)):
                queue.answer(entry)
            else:
                queue.remove(entry)
                queue.requeue(entry)
        clock.forward(INTERVAL)
    assert sent(broker) == each_once(job_ids)
    assert ledger.value("SELECT count(*) FROM sync_jobs WHERE not_before IS NOT NULL") == 0


@pytest.mark.parametrize("move", ["claimed", "done", "put off", "sent again", "batch sent again"])
def test_a_job_that_has_moved_is_not_lost(
    move: str, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    missed_once(context, ledger, clock, queue)
    job_id = ledger.value("SELECT job_id FROM sync_suspects")
    clock.forward(timedelta(seconds=1))
    if move == "claimed":
        claim(context, job_id)
    elif move == "done":
        finish(context, job_id)
    elif move == "batch sent again":
        ledger.execute(f"UPDATE sync_batches SET enqueued_at = '{clock()}'")
    else:
        put_off(context, job_id, clock() + (INTERVAL if move == "put off" else timedelta(0)))
    if move == "sent again":
        assert reconciler.due_jobs(context) == 1
    before = ledger.job(job_id)
    assert settle(context, clock, queue) == 0
    assert ledger.job(job_id) == before
    assert ledger.value("SELECT count(*) FROM sync_suspects") == 0


def test_suspects_of_a_run_that_is_gone_are_forgotten(
    context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    missed_once(context, ledger, clock, queue)
    ledger.execute("DELETE FROM sync_jobs", "UPDATE sync_runs SET state = 'FINISHED'")
    assert settle(context, clock, queue) == 0
    assert ledger.value("SELECT count(*) FROM sync_suspects") == 0


def test_a_run_that_is_opened_again_keeps_its_suspects(
    context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    missed_once(context, ledger, clock, queue)
    tick.daily(context, DailyOptions(date=DAY))
    assert settle(context, clock, queue) == 1


def test_probes_that_are_lost_are_replaced(
    context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    """Each second probe is lost with the data that a restored Redis lacks."""
    job_ids = enqueue(context, ledger, 2)
    queue.lose(job_ids[0])
    clock.forward(GRACE)
    found = 0
    for number in range(1, 12):
        found += reconciler.lost_messages(context)
        fill(context, ledger, number)
        if number % 2:
            for entry in queue.entries():
                if is_probe(task_id_of(entry)):
                    queue.remove(entry)
        queue.work(leave=5)
        clock.forward(INTERVAL)
    assert found == 1
    assert ledger.job(job_ids[0])["not_before"] is not None


def test_one_probe_per_interval_however_many_passes_run_at_once(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    enqueue(context, ledger, 3)
    clock.forward(GRACE)
    at_once(context, 4, reconciler.lost_messages)
    assert len(probes_in(broker)) == 1
    assert len(probes_in(broker, "backfill")) == 0
    clock.forward(INTERVAL)
    at_once(context, 4, reconciler.lost_messages)
    assert len(probes_in(broker)) == 2


def test_no_probe_is_sent_while_no_message_can_be_missing(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    enqueue(context, ledger, 2)
    clock.forward(GRACE - INTERVAL - INSTANT)
    reconciler.lost_messages(context)
    assert probes_in(broker) == []  # too young
    queue.work()
    clock.forward(timedelta(days=1))
    reconciler.lost_messages(context)
    assert probes_in(broker) == []  # done
    assert ledger.value("SELECT count(*) FROM sync_probes") == 0


@pytest.mark.slow
def test_a_queue_without_workers_gets_ever_fewer_probes(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    enqueue(context, ledger, 3)
    clock.forward(GRACE)
    sent_after = []
    for _ in range(300):
        reconciler.lost_messages(context)
        sent_after.append(len(probes_in(broker)))
        clock.forward(INTERVAL)
    assert sent_after[9] == 10
    assert sent_after[-1] <= 50
    assert sent(broker).total() == 3


def test_probes_do_not_count_as_depth(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    enqueue(context, ledger, 3)
    clock.forward(GRACE)
    reconciler.lost_messages(context)
    assert len(broker.messages("daily")) == 4
    assert context.broker.depth("daily") == 3
    lose_messages(broker)
    context.publisher.publish([probe_message(new_probe_id(), "daily")])
    assert (len(broker.messages("daily")), context.broker.depth("daily")) == (1, 0)
    with queue.redis() as redis:
        queue.hold(cast(bytes, redis.rpop(queue.key)))
    assert broker.unacknowledged() == 1
    assert context.broker.depth("daily") == 0


def test_a_lost_message_is_found_in_an_empty_queue_whose_workers_answer_no_probe(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    """Such as workers of an earlier version, which take a probe for an unknown job."""
    job_ids = enqueue(context, ledger, 3)
    queue.lose(job_ids[0])
    clock.forward(GRACE - INTERVAL)
    assert reconciler.lost_messages(context) == 0
    queue.work(answers=False)
    assert ledger.value("SELECT count(*) FROM sync_probes WHERE arrived_at IS NULL") == 1
    clock.forward(INTERVAL)
    assert reconciler.lost_messages(context) == 1


def test_workers_that_answer_are_asked_instead_of_an_empty_queue(
    context: TickContext, ledger: Ledger, clock: HandedClock, queue: Queue
) -> None:
    """A message that is nowhere for more than the second between two looks is not sent twice."""
    message = missed_once(context, ledger, clock, queue)
    queue.work()
    assert reconciler.lost_messages(context) == 0
    queue.hold(message)
    clock.forward(INTERVAL)
    assert reconciler.lost_messages(context) == 0


def test_a_lost_message_beside_a_job_that_is_put_off_again_and_again(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock, queue: Queue
) -> None:
    """Each job has its own grace time: what is sent again does not prolong that of others."""
    lost, late = enqueue(context, ledger, 2)
    lose_messages(broker)
    step = timedelta(seconds=30)
    for _ in range(GRACE // step):
        assert reconciler.lost_messages(context) == 0
        put_off(context, late, clock())
        ledger.execute(f"UPDATE sync_jobs SET attempt = 0 WHERE job_id = '{late}'")
        assert reconciler.due_jobs(context) == 1
        lose_messages(broker)  # the worker has taken it, and puts it off once more
        clock.forward(step)
    assert reconciler.lost_messages(context) == 1
    assert ledger.job(lost)["not_before"] == clock()
    assert ledger.job(late)["not_before"] is None


def test_a_broker_that_shows_no_messages_gets_no_probes(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    enqueue(context, ledger, 3)
    clock.forward(10 * GRACE)
    assert reconciler.lost_messages(replace(context, broker=OpaqueBroker())) == 0
    assert probes_in(broker) == []


def test_a_probe_that_the_broker_refuses_is_not_waited_for(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    class Refusing:
        repeatable = True

        def publish(self, groups: list[GroupMessage]) -> list[UUID | None]:
            raise StoreUnavailable("out of memory")

    enqueue(context, ledger, 3)
    clock.forward(GRACE)
    with pytest.raises(StoreUnavailable):
        reconciler.lost_messages(replace(context, publisher=Refusing()))  # type: ignore[arg-type] # only publish
    assert ledger.value("SELECT count(*) FROM sync_probes") == 0
    reconciler.lost_messages(context)
    assert len(probes_in(broker)) == 1


@pytest.mark.parametrize("publisher", ["redis-bulk", "group"])
def test_a_probe_looks_like_the_message_of_a_job(
    publisher: str, context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    from worker_scheduler.celery_app import app

    settings = context.settings.model_copy(update={"publisher": publisher})
    context = replace(context, settings=settings, publisher=choose(app, settings, context.broker).publisher)
    enqueue(context, ledger, 1)
    clock.forward(GRACE)
    reconciler.lost_messages(context)
    job, probe = broker.messages("daily")
    assert probe.is_probe
    assert not job.is_probe
    assert probe.raw.keys() == job.raw.keys()
    assert probe.headers.keys() == job.headers.keys()
    assert {**probe.headers, "id": 0, "root_id": 0, "group": 0, "group_index": 0} == {
        **job.headers,
        "id": 0,
        "root_id": 0,
        "group": 0,
        "group_index": 0,
    }
    positional, named, embedded = probe.body
    assert [str(UUID(positional[0])), *positional[1:]] == positional
    assert positional[1:] == ["daily:1970-01-01", "scheduler.daily"]
    assert (named, embedded) == tuple(job.body[1:])


@pytest.mark.slow
def test_many_suspects_are_looked_at_in_pages(
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("steps", "probing"):
        monkeypatch.setattr(f"worker_scheduler.maintenance.rules.{module}.JOBS_PER_STEP", 100)
    job_ids = enqueue(context, ledger, 230)
    lose_messages(broker)
    clock.forward(GRACE - INTERVAL)
    found = []
    for number in range(1, 4):
        found.append(reconciler.lost_messages(context))
        fill(context, ledger, number)
        queue.work(leave=5)
        clock.forward(INTERVAL)
    assert found == [0, 0, 230]
    assert reconciler.due_jobs(context) == 230
    assert {job_id: n for job_id, n in sent(broker).items() if UUID(job_id) in job_ids} == each_once(
        job_ids
    )


@pytest.mark.parametrize("statistics", ["none", "of an earlier run"])
@pytest.mark.parametrize(
    "name",
    [
        *("_BY_BATCH", "_NUMBER_ALONE", "_OF_FEW_ALONE", "_OF_MANY_ALONE"),
        *("_STILL_WAITING", "_LOCK_WAITING", "_MAKE_DUE", "_NUMBER_RUNNING"),
    ],
)
def test_waiting_jobs_are_found_by_an_index_and_in_one_partition(
    name: str, statistics: str, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """With statistics older than the run, in which no job waits."""
    make_users(ledger.url, 2000)
    if statistics != "none":
        tick.daily(context, DailyOptions(date=DAY - timedelta(days=1)))
        ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
        ledger.execute("ANALYZE sync_jobs", "ANALYZE sync_batches")
    tick.daily(context, DailyOptions(date=DAY))
    run_id = ledger.value(f"SELECT run_id FROM sync_runs WHERE partition_key = '{KEY}'")
    # Few: of 2,000 jobs, more are read as well from start to end.
    ids = [job["job_id"] for job in ledger.jobs(KEY)][:5]
    parameters = {
        **{"run_id": run_id, "cutoff": clock(), "limit": 1000, "batch": 0, "after": UUID(int=0)},
        **{"now": clock(), "job_ids": [str(one) for one in ids], **by_id.runs([run_id])},
        **{
            "run_ids": [str(run_id)],
            "batches": [0] * 5,
            "attempts": [0] * 5,
            "published_until": [clock()] * 5,
        },
    }
    with context.database.transaction() as connection:
        statement = getattr(waiting_jobs, name)
        if isinstance(statement, by_id.ByIdStatement):
            statement = statement.for_table(connection)
        wanted = {key: parameters[key] for key in statement.compile().params}
        by_id.in_index_order(connection)
        plan = "\n".join(connection.execute(text(f"EXPLAIN {statement.text}"), wanted).scalars())
    assert "Seq Scan on sync_jobs" not in plan
    assert "_run_id_user_id_" not in plan  # that would be all jobs of the run
    assert "monthless" not in plan
