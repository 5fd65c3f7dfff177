"""The states that a fault leaves behind in the ledger and in the broker, and how to look at them."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID, uuid4

from redis import Redis

from tests.support import attempts
from tests.support.contexts import NOON
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.planner import Planner
from worker_scheduler.fanout.tick import DAILY_TRIGGER
from worker_scheduler.ledger import runs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.runs import NewRun, Run
from worker_scheduler.ledger.tables import JobStatus, Kind
from worker_scheduler.maintenance import reconciler
from worker_scheduler.publisher.broker import BrokerState, OpaqueBroker

DAY = NOON.date()
KEY = f"daily:{DAY}"
LEASE = timedelta(seconds=45)
BATCH_LEASE = timedelta(seconds=30)
GRACE = timedelta(seconds=120)
RULE_NAMES = [rule.__name__ for rule in reconciler.RULES]


def enqueue(context: TickContext, ledger: Ledger, users: int) -> list[UUID]:
    """Enqueues the day's run; returns the ids of its jobs, batch after batch."""
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
    """The day's run, as a tick leaves it that dies right after opening it."""
    new = NewRun(uuid4(), KEY, Kind.DAILY, DAILY_TRIGGER, None, None, "a tick that died", None)
    with context.database.transaction() as connection:
        run = runs.open_run(connection, new, context.clock(), leased_until)
    assert run is not None
    return run


def half_planned(context: TickContext, ledger: Ledger, leased_until: datetime) -> None:
    """Leaves a run of 25 users whose planner died: 10 of them are planned, nothing is sent."""
    make_users(ledger.url, 25)
    planner = Planner(context.database, context.relation, context.clock)
    (chunk,) = islice(planner.chunks(open_run(context, leased_until), batch_size=10), 1)
    assert (chunk.job_count, chunk.done) == (10, False)


def batch_not_enqueued(context: TickContext, ledger: Ledger, claimed_until: datetime) -> None:
    """Leaves 25 users in 3 planned batches; the second one's dispatcher died, the others are sent."""
    enqueue(context, ledger, 25)
    ledger.execute(
        "UPDATE sync_runs SET state = 'DISPATCHING', leased_until = NULL, enqueued_at = NULL",
        "UPDATE sync_batches SET enqueued_at = NULL, broker_epoch = NULL, claimed_by = gen_random_uuid(),"
        f" claimed_until = '{claimed_until}', generation = 7 WHERE number = 1",
    )


def claim(context: TickContext, job_id: UUID) -> ClaimedJob:
    now = context.clock()
    with context.database.autocommit() as connection:
        claimed = attempts.claim(connection, job_id, now, context.settings.lease.until(now))
    assert claimed is not None
    return claimed


def finish(context: TickContext, job_id: UUID, status: JobStatus = JobStatus.COMPLETED) -> None:
    with context.database.autocommit() as connection:
        assert attempts.finish(connection, claim(context, job_id), status, None, context.clock())


def put_off(context: TickContext, job_id: UUID, not_before: datetime) -> None:
    with context.database.autocommit() as connection:
        assert attempts.put_off(
            connection, claim(context, job_id), error_message=None, not_before=not_before
        )


def sent(broker: Broker, queue: str = "daily") -> Counter[str]:
    """How many messages each job has in the queue."""
    return Counter(message.task_id for message in broker.messages(queue) if not message.is_probe)


def probes_in(broker: Broker, queue: str = "daily") -> list[UUID]:
    """The probes in the queue, the first one first."""
    return [UUID(message.task_id) for message in broker.messages(queue) if message.is_probe]


def each_once(job_ids: list[UUID]) -> Counter[str]:
    return Counter(str(job_id) for job_id in job_ids)


def unacknowledged(broker: Broker, routing_key: str) -> None:
    """Adds a message as kombu keeps it while a worker has it."""
    with Redis.from_url(broker.url) as redis:
        redis.hset(f"{broker.key_prefix}unacked", str(uuid4()), json.dumps([{}, "", routing_key]))


def lose_messages(broker: Broker) -> None:
    """Removes the messages and keeps the broker epoch, as if workers had died before their claims."""
    broker.lose_queue("daily")


class OvertakenBroker(OpaqueBroker):
    """The broker as a slow reconciler sees it: `overtake` runs right after the last look at the broker."""

    def __init__(self, broker: BrokerState, overtake: Callable[[], object]) -> None:
        self._broker = broker
        self._call = overtake
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
            self._call()
