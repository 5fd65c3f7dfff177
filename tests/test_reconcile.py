"""Reconcile: each rule on both sides of its bound, twice, and by several at once."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID, uuid4

import pytest
from redis import Redis

from tests.support.command_line import Outcome
from tests.support.contexts import INSTANT, NOON, HandedClock, at_once, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler import reconciler, tick
from worker_scheduler.context import TickContext
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import jobs, locks, rescue, runs
from worker_scheduler.ledger.jobs import ClaimedJob
from worker_scheduler.ledger.runs import NewRun, Run
from worker_scheduler.ledger.tables import JobStatus, Kind
from worker_scheduler.options import BackfillOptions, DailyOptions
from worker_scheduler.planner import Planner
from worker_scheduler.publisher import GroupMessage
from worker_scheduler.publisher.broker import BrokerState, OpaqueBroker
from worker_scheduler.tick import DAILY_TRIGGER

DAY = NOON.date()
KEY = f"daily:{DAY}"
LEASE = timedelta(seconds=45)
BATCH_LEASE = timedelta(seconds=30)
GRACE = timedelta(seconds=120)


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, ledger: Ledger, clock: HandedClock) -> Iterator[TickContext]:
    # Deployed at noon: no slot is due.
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON}'")
    with context_at(clock, enqueue_batch_size=10) as context:
        yield context


# --- how a fault leaves the ledger ----------------------------------------------------------------


def enqueue(context: TickContext, ledger: Ledger, users: int) -> list[UUID]:
    """A run of the day, enqueued; the ids of its jobs, batch after batch."""
    make_users(ledger.url, users)
    assert tick.daily(context, DailyOptions(date=DAY)).outcome == "enqueued"
    # On a clock that stands still, the ids of two chunks are in no order.
    rows = ledger.rows(
        "SELECT j.job_id FROM sync_jobs j JOIN sync_batches b"
        " ON b.run_id = j.run_id AND j.job_id BETWEEN b.first_job_id AND b.last_job_id"
        " WHERE j.partition_key = %s ORDER BY b.number, j.job_id",
        KEY,
    )
    return [row["job_id"] for row in rows]


def open_run(context: TickContext, leased_until: datetime) -> Run:
    """A run that a tick has opened, and nothing more."""
    new = NewRun(uuid4(), KEY, Kind.DAILY, DAILY_TRIGGER, None, None, "a tick that died", None)
    with context.database.transaction() as connection:
        run = runs.open_run(connection, new, context.clock(), leased_until)
    assert run is not None
    return run


def half_planned(context: TickContext, ledger: Ledger, leased_until: datetime) -> None:
    """25 users, 10 of them planned, nothing sent; the planner died."""
    make_users(ledger.url, 25)
    planner = Planner(context.database, context.relation, context.clock)
    (chunk,) = islice(planner.chunks(open_run(context, leased_until), batch_size=10), 1)
    assert (chunk.jobs, chunk.done) == (10, False)


def batch_not_enqueued(context: TickContext, ledger: Ledger, claimed_until: datetime) -> None:
    """25 users in 3 batches, all planned; a dispatcher took the second and died, the others are out."""
    enqueue(context, ledger, 25)
    ledger.execute(
        "UPDATE sync_runs SET state = 'DISPATCHING', leased_until = NULL, enqueued_at = NULL",
        "UPDATE sync_batches SET enqueued_at = NULL, broker_epoch = NULL, claimed_by = gen_random_uuid(),"
        f" claimed_until = '{claimed_until}', generation = 7 WHERE number = 1",
    )


def claim(context: TickContext, job_id: UUID) -> ClaimedJob:
    now = context.clock()
    with context.database.autocommit() as connection:
        claimed = jobs.claim(connection, job_id, now, context.settings.lease.until(now))
    assert claimed is not None
    return claimed


def finish(context: TickContext, job_id: UUID, status: JobStatus = JobStatus.COMPLETED) -> None:
    with context.database.autocommit() as connection:
        assert jobs.finish(connection, claim(context, job_id), status, None, context.clock())


def put_off(context: TickContext, job_id: UUID, not_before: datetime) -> None:
    with context.database.autocommit() as connection:
        assert jobs.put_off(connection, claim(context, job_id), error_message=None, not_before=not_before)


def sent(broker: Broker, queue: str = "daily") -> Counter[str]:
    """How often each job's message is in the queue."""
    return Counter(message.task_id for message in broker.messages(queue))


def each_once(job_ids: list[UUID]) -> Counter[str]:
    return Counter(str(job_id) for job_id in job_ids)


def unacknowledged(broker: Broker, routing_key: str) -> None:
    """As kombu notes a message that a worker has taken."""
    with Redis.from_url(broker.url) as redis:
        redis.hset(f"{broker.key_prefix}unacked", str(uuid4()), json.dumps([{}, "", routing_key]))


class OvertakenBroker(OpaqueBroker):
    """The broker, to a reconciler that is overtaken right after its last look."""

    def __init__(self, broker: BrokerState, meanwhile: Callable[[], object]) -> None:
        self._broker = broker
        self._meanwhile = meanwhile
        self.looks = 0
        self.overtaken = False

    def epoch(self) -> UUID | None:
        epoch = self._broker.epoch()
        self._overtake()
        return epoch

    def depth(self, queue: str) -> int | None:
        depth = self._broker.depth(queue)
        self.looks += 1
        if self.looks == 2:
            self._overtake()
        return depth

    def _overtake(self) -> None:
        if not self.overtaken:
            self.overtaken = True
            self._meanwhile()


# --- expired_locks --------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "removed"), [(LEASE - INSTANT, 0), (LEASE, 1)])
def test_a_lock_goes_when_its_lease_ran_out(
    age: timedelta, removed: int, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    with context.database.autocommit() as connection:
        assert locks.acquire(
            connection, 1, uuid4(), partition_key=KEY, now=clock(), leased_until=clock() + LEASE
        )
    clock.forward(age)
    assert reconciler.expired_locks(context) == removed
    assert ledger.value("SELECT count(*) FROM sync_locks") == 1 - removed
    assert reconciler.expired_locks(context) == 0


# --- abandoned_runs: half-planned runs, batches not enqueued ----------------------------------------


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
    # Whoever planned from the start would meet this user.
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


def test_a_chosen_few_stay_the_chosen_few(context: TickContext, ledger: Ledger, clock: HandedClock) -> None:
    make_users(ledger.url, 25)
    chosen = [row["id"] for row in ledger.rows("SELECT id FROM users ORDER BY id LIMIT 12")]
    new = NewRun(uuid4(), "backfill:x", Kind.BACKFILL, "scheduler.backfill", 30, chosen, None, None)
    with context.database.transaction() as connection:
        assert runs.open_run(connection, new, clock(), clock())
    assert reconciler.abandoned_runs(context) == 1
    found = ledger.jobs("backfill:x")
    assert {job["user_id"] for job in found} == set(chosen)
    assert {job["backfill_days"] for job in found} == {30}


@pytest.mark.parametrize(
    ("age", "sent_anew"), [(timedelta(0), 0), (BATCH_LEASE - INSTANT, 0), (BATCH_LEASE, 5)]
)
def test_a_batch_is_dispatched_when_its_lease_ran_out(
    age: timedelta,
    sent_anew: int,
    context: TickContext,
    ledger: Ledger,
    broker: Broker,
    clock: HandedClock,
) -> None:
    batch_not_enqueued(context, ledger, claimed_until=clock() + BATCH_LEASE)
    broker.lose_everything()
    # Nine of its ten jobs are done or under way by another way: only what waits needs a message.
    ledger.execute(
        "UPDATE sync_jobs SET status = 'COMPLETED' WHERE job_id IN (SELECT j.job_id FROM sync_jobs j"
        " JOIN sync_batches b ON b.number = 1 AND j.job_id BETWEEN b.first_job_id AND b.last_job_id"
        " ORDER BY j.job_id LIMIT 5)"
    )
    clock.forward(age)
    reconciler.abandoned_runs(context)
    assert broker.counts() == ({"daily": sent_anew} if sent_anew else {})
    state = ledger.value("SELECT state FROM sync_runs")
    assert state == ("ENQUEUED" if sent_anew else "DISPATCHING")
    reconciler.abandoned_runs(context)
    assert broker.counts() == ({"daily": sent_anew} if sent_anew else {})


def test_a_run_that_must_wait_holds_up_no_other(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """The older one has a batch that somebody still holds, the younger one is only half done."""
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
    """So whoever takes over a run from a dead tick finds all of its batches free."""
    settings = context.settings
    assert settings.batch_lease.seconds < settings.lease.seconds


# --- lost_broker_data -------------------------------------------------------------------------------


def test_lost_data_give_one_new_message_a_pending_job(
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
        # The one that had nothing to send is noted as seen, so that it is not looked at again.
        assert row["broker_epoch"] not in (None, before["broker_epoch"])
    assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert sent(broker) == each_once(waiting)


def test_lost_data_are_noticed_by_the_marker_not_by_age(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    enqueue(context, ledger, 25)
    assert reconciler.lost_broker_data(context) == 0
    with Redis.from_url(broker.url) as redis:
        redis.delete(f"{broker.key_prefix}worker_scheduler:epoch")
    assert reconciler.lost_broker_data(context) == 3


def test_data_lost_in_the_middle_of_a_tick(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    """The first batches went before the flush, the later ones after it; no tick died."""
    make_users(ledger.url, 30)
    reports: list[object] = []

    def flush_once(report: object) -> None:
        if not reports:
            broker.lose_everything()
        reports.append(report)

    # With a pause, since batches without one go several at once.
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
    """Its other jobs are done: there is nothing in it that had a message to lose."""
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
    """It asked for the marker before the flush; another has sent everything anew since then."""
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
    """What was put off goes out in the new life, and its batch, which is put back later, without it."""
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
    """Empty, and too late for whoever asks for the marker."""
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
    """Meanwhile another pass has sent its batch in the new life, without it."""
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


# --- lost_messages ----------------------------------------------------------------------------------


def lose_messages(broker: Broker) -> None:
    """The messages go, and the marker stays: workers took them and died before they claimed."""
    with Redis.from_url(broker.url) as redis:
        redis.delete(f"{broker.key_prefix}daily")


@pytest.mark.parametrize(("age", "found"), [(GRACE - INSTANT, 0), (GRACE, 3)])
def test_a_lost_message_is_sent_anew_after_the_grace_time(
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
    assert ledger.job(job_ids[2])["attempt"] == 0  # nobody has tried


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
    """Each run has a grace time of its own, since each has its own last batch."""
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
    """Another pass sends the message anew just after our second look."""
    job_ids = enqueue(context, ledger, 5)
    lose_messages(broker)
    clock.forward(GRACE)
    slow = OvertakenBroker(context.broker, lambda: reconciler.reconcile(context))
    assert reconciler.lost_messages(replace(context, broker=slow)) == 0
    assert slow.overtaken
    reconciler.reconcile(context)
    assert sent(broker) == each_once(job_ids)


def test_users_who_are_added_meanwhile_are_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """A tick adds users just after our second look."""
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


def test_a_job_that_is_sent_anew_after_the_second_look_is_not_lost(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """Another pass sends a job that was put off, just after we saw the queue empty."""
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


def test_a_job_that_is_sent_anew_after_the_grace_was_restarted_is_not_lost(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    """The same a moment later, on clocks that say the same: between our two statements."""
    _, late = enqueue(context, ledger, 2)
    put_off(context, late, not_before=clock() + GRACE)
    clock.forward(GRACE)
    with context.database.autocommit() as connection:
        (run,) = runs.enqueued_before(connection, clock() - GRACE)
        assert runs.restart_grace(connection, run, clock())
        assert reconciler.due_jobs(context) == 1
        marked = rescue.mark_messages_gone(connection, run.run_id, after=UUID(int=0), now=clock(), limit=10)
    assert marked == []


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
    """A queue that nobody works on for a week is left exactly as it is."""
    enqueue(context, ledger, 250)
    messages = broker.everything()
    for _ in range(14):
        clock.forward(timedelta(hours=12))
        # The slots of the week are another matter; see test_catch_up.py.
        ledger.execute(f"UPDATE sync_origin SET since = '{clock()}'")
        assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert broker.everything() == messages


# --- dead_workers -----------------------------------------------------------------------------------


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
            assert jobs.extend_lease(connection, claimed, clock() + LEASE)
        clock.forward(LEASE / 4 * 3 - INSTANT)
        assert reconciler.dead_workers(context) == 0
    with context.database.autocommit() as connection:
        assert jobs.finish(connection, claimed, JobStatus.COMPLETED, None, clock())


def test_who_was_given_up_on_can_neither_renew_nor_finish(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    slow = claim(context, job_id)
    clock.forward(LEASE)
    reconciler.reconcile(context)
    successor = claim(context, job_id)
    before = ledger.job(job_id)
    with context.database.autocommit() as connection:
        assert not jobs.extend_lease(connection, slow, clock() + 2 * LEASE)
        assert not jobs.finish(connection, slow, JobStatus.FAILED, "too late", clock())
        assert not jobs.put_off(connection, slow, error_message="too late", not_before=clock())
    assert ledger.job(job_id) == before
    with context.database.autocommit() as connection:
        assert jobs.finish(connection, successor, JobStatus.COMPLETED, None, clock())


# --- due_jobs ---------------------------------------------------------------------------------------


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
    """What a worker is given whose clock is a second behind ours."""
    now = context.clock() - timedelta(seconds=1)
    with context.database.autocommit() as connection:
        return jobs.claim(connection, job_id, now, context.settings.lease.until(now))


def test_a_clock_that_is_behind_claims_nothing_before_its_time(
    context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    (job_id,) = enqueue(context, ledger, 1)
    put_off(context, job_id, not_before=clock())
    assert claim_behind(context, job_id) is None


def test_a_clock_that_is_behind_claims_what_is_being_published(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    """A worker is faster than the note that the message is out; refused, the message would be gone."""
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
        assert jobs.finish(connection, attempt, JobStatus.COMPLETED, None, clock())


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


# --- finished_runs ----------------------------------------------------------------------------------


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
        assert jobs.finish(connection, claimed or claim(context, last), JobStatus.COMPLETED, None, clock())
    clock.forward(timedelta(seconds=60))
    assert reconciler.finished_runs(context) == 1
    run = ledger.row("SELECT * FROM sync_runs")
    assert run["state"] == "FINISHED"
    assert (run["completed"], run["failed"], run["skipped"]) == (7, 2, 1)
    assert run["finished_at"] == clock()
    clock.forward(timedelta(seconds=60))
    assert reconciler.finished_runs(context) == 0
    assert ledger.row("SELECT * FROM sync_runs") == run


def test_a_run_of_nobody_is_finished(context: TickContext, ledger: Ledger) -> None:
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


# --- all rules --------------------------------------------------------------------------------------

RULE_NAMES = [rule.__name__ for rule in reconciler.RULES]


def an_expired_lock(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 25)
    ledger.execute(f"INSERT INTO sync_locks VALUES (1, gen_random_uuid(), 'x', '{NOON - LEASE}', '{NOON}')")


def a_half_planned_run(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    half_planned(context, ledger, leased_until=NOON)


def an_unsent_batch(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    batch_not_enqueued(context, ledger, claimed_until=NOON)
    # Its publisher died before it published: what is in the queue is of the other two.
    batch = ledger.row("SELECT * FROM sync_batches WHERE number = 1")
    with Redis.from_url(broker.url) as redis:
        for text in redis.lrange(f"{broker.key_prefix}daily", 0, -1):
            if batch["first_job_id"] <= UUID(json.loads(text)["headers"]["id"]) <= batch["last_job_id"]:
                redis.lrem(f"{broker.key_prefix}daily", 1, text)


def lost_data(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 25)
    broker.lose_everything()


def lost_messages(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 25)
    ledger.execute(f"UPDATE sync_runs SET enqueued_at = '{NOON - GRACE}'")
    lose_messages(broker)


def dead_workers(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    for job_id in enqueue(context, ledger, 25):
        claim(context, job_id)
    ledger.execute(f"UPDATE sync_jobs SET leased_until = '{NOON}'")
    lose_messages(broker)


def jobs_put_off(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    for job_id in enqueue(context, ledger, 25):
        put_off(context, job_id, NOON)
    lose_messages(broker)


def a_missed_slot(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 25)
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON - timedelta(days=1)}'")


Situation = Callable[[TickContext, Ledger, Broker], None]
SITUATIONS: list[Situation] = [
    *(an_expired_lock, a_half_planned_run, an_unsent_batch, lost_data),
    *(lost_messages, dead_workers, jobs_put_off, a_missed_slot),
]


@pytest.mark.parametrize("together", [1, 4], ids=["alone", "four-at-once"])
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_a_pass_leaves_one_message_a_job_however_many_make_it(
    situation: Situation, together: int, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    situation(context, ledger, broker)
    for results in (at_once(context, together, reconciler.reconcile) for _ in range(3)):
        assert [error for result in results for error in result.errors] == []
    job_ids = [job["job_id"] for job in ledger.jobs(KEY)]
    assert len(job_ids) == 25
    assert sent(broker) == each_once(job_ids)
    assert ledger.states(KEY) == {"PENDING": 25}
    assert ledger.value("SELECT count(*) FROM sync_locks") == 0
    assert ledger.row("SELECT state, leased_until FROM sync_runs") == {
        "state": "ENQUEUED",
        "leased_until": None,
    }
    # And there it stays.
    before = ledger.everything(), broker.everything()
    assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert (ledger.everything(), broker.everything()) == before


def test_several_at_once_share_the_jobs_of_the_dead(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    dead_workers(context, ledger, broker)
    assert sum(at_once(context, 4, reconciler.dead_workers)) == 25


def test_several_at_once_finish_a_run_once(context: TickContext, ledger: Ledger) -> None:
    enqueue(context, ledger, 25)
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    assert sum(at_once(context, 4, reconciler.finished_runs)) == 1


@pytest.mark.parametrize("ticks", [1, 4])
def test_a_tick_and_reconcile_at_once(
    ticks: int, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 250)
    settings = context.settings.model_copy(update={"scheduler_lock_enabled": False})
    context = replace(context, settings=settings)
    turn = iter(range(ticks))

    def either(own: TickContext) -> object:
        if next(turn, None) is None:
            return [reconciler.reconcile(own) for _ in range(5)]
        return tick.daily(own, DailyOptions(date=DAY))

    at_once(context, ticks + 2, either)
    reconciler.reconcile(context)
    assert sent(broker) == each_once([job["job_id"] for job in ledger.jobs(KEY)])
    assert ledger.count(KEY) == 250


def test_an_older_schedulers_rows_are_nobodys(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    ledger.execute(
        "INSERT INTO sync_jobs (job_id, user_id, status, triggered_by, partition_key, created_at)"
        " SELECT gen_random_uuid(), gen_random_uuid(), status, 'scheduler.daily', 'daily:2020-01-01',"
        " '2020-01-01' FROM unnest(ARRAY['PENDING', 'RUNNING', 'COMPLETED']) AS status"
    )
    before = ledger.everything()
    clock.forward(timedelta(hours=1))
    assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert (ledger.everything(), broker.counts()) == (before, {})


def test_an_outage_of_the_broker_stops_only_the_rules_that_need_it(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    from worker_scheduler.publisher.broker import RedisBroker

    first, second = enqueue(context, ledger, 2)
    claim(context, first)
    finish(context, second)
    clock.forward(LEASE)
    with Redis.from_url(broker.url) as redis:
        port = redis.connection_pool.connection_kwargs["port"]
    nobody = RedisBroker(f"redis://:topsecret@localhost:1/{port % 10}", "")
    result = reconciler.reconcile(replace(context, broker=nobody))
    assert result.put_right["dead_workers"] == 1
    assert "finished_runs" in result.put_right
    assert "lost_broker_data" not in result.put_right
    assert {type(error) for error in result.errors} == {StoreUnavailable}
    assert result.exit_status == 4
    assert "topsecret" not in json.dumps(result.as_json())
    assert reconciler.reconcile(context).errors == []


def test_another_broker_than_redis_shows_nothing_and_nothing_is_sent_anew(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:

    enqueue(context, ledger, 5)
    broker.lose_everything()
    clock.forward(10 * GRACE)
    opaque = replace(context, broker=OpaqueBroker())
    assert reconciler.reconcile(opaque).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert broker.counts() == {}


# --- the command and the task -----------------------------------------------------------------------


def test_the_command_says_what_it_put_right(
    scheduler: Callable[..., Outcome], ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 3)
    today = datetime.now(UTC).date().isoformat()
    scheduler("daily", "--date", today)
    assert scheduler("reconcile").stdout == "nothing to put right\n"
    broker.lose_everything()
    outcome = scheduler("reconcile", "--json")
    assert outcome.status == 0
    assert outcome.report == {
        **dict.fromkeys(RULE_NAMES, 0),
        **{"lost_broker_data": 1, "abandoned_runs": 1, "errors": []},
    }
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    assert scheduler("reconcile").stdout == "finished runs: 1\n"


def test_the_command_on_tables_that_are_not_there(
    empty_database_url: str, scheduler: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    outcome = scheduler("reconcile")
    assert outcome.status == 2
    assert "scheduler migrate" in outcome.error


def test_the_command_without_a_broker(
    scheduler: Callable[..., Outcome], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    scheduler("daily")
    monkeypatch.setenv("REDIS_URL", "redis://:topsecret@localhost:1/0")
    monkeypatch.setenv("PUBLISHER", "group")
    outcome = scheduler("reconcile", "--json")
    assert outcome.status == 4
    assert len(outcome.report["errors"]) >= 1
    assert "topsecret" not in outcome.stdout + outcome.stderr
