"""Puts the parts together for the entry points: CLI and tasks. The only place with the real clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from uuid import UUID, uuid4

import structlog
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from worker_scheduler.celery_app import DISPATCH, app
from worker_scheduler.clock import utc_now
from worker_scheduler.context import TickContext
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.lease_keeper import LeaseKeeper
from worker_scheduler.ledger.database import Database
from worker_scheduler.publisher.broker import BrokerState, OpaqueBroker, RedisBroker, reason_of
from worker_scheduler.publisher.choice import choose
from worker_scheduler.report import Report
from worker_scheduler.settings import Settings, load

log = structlog.get_logger(__name__)


@contextmanager
def tick_context(requested_by: str, on_progress: Callable[[Report], None]) -> Iterator[TickContext]:
    """What a tick works with, its connections closed at the end. Raises ConfigurationError."""
    settings = load()
    broker = broker_state(settings)
    # The planner, the dispatcher, and the heartbeats of the lock and of the run.
    database = open_database(settings, size=4)
    try:
        yield TickContext(
            settings=settings,
            database=database,
            publisher=choose(app, settings, broker).publisher,
            broker=broker,
            clock=utc_now,
            pause=time.sleep,
            on_progress=on_progress,
            requested_by=requested_by,
            call_dispatchers=call_dispatchers,
        )
    finally:
        database.dispose()


@contextmanager
def task_context(requested_by: str, on_progress: Callable[[Report], None]) -> Iterator[TickContext]:
    """As `tick_context`, for a task: it must not wait for workers, since it holds a process of theirs."""
    with tick_context(requested_by, on_progress) as context:
        yield replace(context, patient=False, pass_on=partial(pass_on, context.broker))


def call_dispatchers(partition_key: str, number: int) -> None:
    """Rings `scheduler.dispatch`. Where that fails the run's own dispatcher does the work, or fails too."""
    for _ in range(number):
        if not _ring_dispatch(partition_key, "scheduler", str(uuid4())):
            return


def pass_on(broker: BrokerState, partition_key: str, queue: str) -> None:
    """Rings `scheduler.dispatch` behind the jobs that fill the queue, unless it is rung there already;
    if that fails, reconcile goes on.
    """
    message_id = str(uuid4())
    try:
        if broker.note_baton(partition_key, message_id) and not _ring_dispatch(
            partition_key, queue, message_id
        ):
            broker.take_baton(partition_key, message_id)
    except StoreUnavailable as error:
        log.warning("run not passed on", partition_key=partition_key, error=str(error))


def _ring_dispatch(partition_key: str, queue: str, message_id: str) -> bool:
    arguments = {"partition_key": partition_key}
    try:
        app.send_task(DISPATCH, kwargs=arguments, queue=queue, task_id=message_id, retry=False)
    except (KombuError, RedisError, OSError) as error:
        log.warning("no dispatchers called", partition_key=partition_key, error=reason_of(error))
        return False
    return True


def broker_state(settings: Settings) -> BrokerState:
    """What can be seen of the broker's data."""
    if settings.broker_is_redis:
        return RedisBroker(settings.broker_url, settings.redis_key_prefix)
    return OpaqueBroker()


def open_database(settings: Settings, size: int) -> Database:
    """The ledger's database, not connected yet."""
    return Database(settings.database_url.get_secret_value(), size=size)


def lease_keeper(active: Callable[[], Iterable[UUID]]) -> LeaseKeeper:
    """The heartbeat of a worker's main process over its pool's active jobs."""
    settings = load()
    database = open_database(settings, size=1)
    return LeaseKeeper(database=database, clock=utc_now, lease=settings.lease, active=active)
