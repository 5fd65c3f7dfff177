"""The composition root: puts the parts together for the entry points, which are CLI, tasks and `claim`.

Every connection pool of a process is made here, and the ledger's clock only here. The Celery app is
imported by the functions that need it, not at the top: making it also makes it Celery's current app, and a
code base that only uses `claim` has an app of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from worker_scheduler import child_process
from worker_scheduler.clock import Clock, refresh
from worker_scheduler.config.settings import Settings, load
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher_requests import CommandRequests, TaskRequests
from worker_scheduler.fanout.report import Report
from worker_scheduler.leases import Lease, heartbeat
from worker_scheduler.ledger.clock import HostWatch, LedgerClock
from worker_scheduler.ledger.database import Database
from worker_scheduler.maintenance.watchdog import Watchdog
from worker_scheduler.publisher.broker import BrokerState, OpaqueBroker
from worker_scheduler.publisher.choice import choose
from worker_scheduler.publisher.dispatch_message import DispatchSender
from worker_scheduler.publisher.redis_broker import RedisBroker
from worker_scheduler.worker import pool_memory
from worker_scheduler.worker.claims import Worker
from worker_scheduler.worker.lost_processes import LostProcesses
from worker_scheduler.worker.pool_heartbeat import PoolHeartbeat
from worker_scheduler.worker.pool_memory import Held, PoolMemory
from worker_scheduler.worker.retry_on import loaded_at_first_error


@contextmanager
def tick_context(requested_by: str, on_progress: Callable[[Report], None]) -> Iterator[TickContext]:
    """What a tick works with; its connections are closed at the end. Raises ConfigurationError."""
    from worker_scheduler.celery_app import app  # noqa: PLC0415

    settings = load()
    broker = broker_state(settings)
    # The planner, the dispatcher, and the heartbeats of the lock, of the run and of the clock; the judge of
    # dead workers.
    database = open_database(settings, size=6)
    clock = ledger_clock(database, settings.lease)
    try:
        with _kept_right(clock, settings.lease):
            yield TickContext(
                settings=settings,
                database=database,
                publisher=choose(app, settings, broker).publisher,
                broker=broker,
                clock=clock,
                pause=time.sleep,
                on_progress=on_progress,
                requested_by=requested_by,
                dispatcher_requests=CommandRequests(DispatchSender(app)),
                dispatch_sender=DispatchSender(app),
                actor=requested_by.removeprefix("cli "),
            )
    finally:
        database.dispose()


@contextmanager
def task_context(
    requested_by: str,
    on_progress: Callable[[Report], None],
    actor: str | None = None,
    request_id: UUID | None = None,
) -> Iterator[TickContext]:
    """Yields what a tick works with in a task, which never waits for workers: see TaskRequests.

    actor, request_id: see TickContext; None: this process, and a new id.
    """
    from worker_scheduler.celery_app import app  # noqa: PLC0415

    with tick_context(requested_by, on_progress) as context:
        yield replace(
            context,
            dispatcher_requests=TaskRequests(DispatchSender(app), context.broker),
            actor=actor or context.actor,
            request_id=request_id or context.request_id,
        )


def broker_state(settings: Settings) -> BrokerState:
    """A view of the broker's data."""
    if settings.broker_is_redis:
        return RedisBroker(settings.broker_url, settings.redis_key_prefix)
    return OpaqueBroker()


def open_database(settings: Settings, size: int) -> Database:
    """The ledger's database, not yet connected. size: connections at most."""
    return Database(settings.database_url.get_secret_value(), size=size)


def ledger_clock(database: Database, lease: Lease) -> Clock:
    """The ledger's clock, which first asks when it is first called. A host that is off by a quarter of the
    lease is named in the log.
    """
    return LedgerClock(
        database,
        # Half of what lies between two heartbeats: of those that come together, one asks.
        ask_every_seconds=lease.heartbeat_seconds / 2,
        on_difference=_host_watch_of(os.getpid(), allowed_clock_difference(lease)),
    )


def allowed_clock_difference(lease: Lease) -> float:
    """The seconds by which a host's clock may differ from Postgres' before somebody is told."""
    return lease.seconds / 4


def host_ahead_seconds(database: Database) -> float:
    """The seconds by which this host's clock is ahead of Postgres', now. Raises SchedulerError."""
    return LedgerClock(database, ask_every_seconds=0).host_ahead_seconds


@cache
def _host_watch_of(_process_id: int, allowed_seconds: float) -> HostWatch:
    # One per process, since each task makes a clock of its own.
    return HostWatch(allowed_seconds)


def _kept_right(clock: Clock, lease: Lease) -> AbstractContextManager[None]:
    """Lets the clock ask again at each heartbeat while the block runs."""

    def ask_again() -> bool:
        refresh(clock)
        return True

    return heartbeat(ask_again, lease.heartbeat_seconds, "ledger clock")


def pool_heartbeat(held: Callable[[], Iterable[Held]]) -> PoolHeartbeat:
    """The heartbeat of a prefork worker's main process, for the attempts that its pool holds."""
    settings = load()
    database = open_database(settings, size=1)
    return PoolHeartbeat(
        database=database,
        clock=ledger_clock(database, settings.lease),
        lease=settings.lease,
        held=held,
    )


def lost_processes(memory: PoolMemory) -> LostProcesses:
    """What a prefork worker's main process ends attempts with. Raises ConfigurationError."""
    worker = process_worker()
    return LostProcesses(memory, worker.database, worker.endings, load().job_timeout_seconds)


def watchdog(worker_name: str) -> Watchdog:
    """The watchdog of a worker's main process, which starts overdue reconcile passes."""
    settings = load()
    database = open_database(settings, size=1)

    def command(begun_at: datetime) -> list[str]:
        arguments = (worker_name, begun_at.isoformat())
        return child_process.command("worker_scheduler.pass_process", "main", *arguments)

    return Watchdog(
        database=database,
        clock=ledger_clock(database, settings.lease),
        interval=timedelta(seconds=settings.reconcile_interval_seconds),
        command=command,
    )


def process_worker() -> Worker:
    """This process's worker, which keeps its connections from job to job. Raises ConfigurationError."""
    # Per process: a connection that was opened before a fork must not be used by both processes.
    process_id = os.getpid()
    worker = _workers.get(process_id)
    # Two threads may come here at the same moment, and both must get the same. No lock: a signal's handler
    # comes here, too, and a process that is forked would inherit it.
    return worker or _workers.setdefault(process_id, _new_worker())


_workers: dict[int, Worker] = {}
"""Those that `process_worker` has made, by the id of their process."""


def _new_worker() -> Worker:
    settings = load()
    url = settings.database_url.get_secret_value()
    # Connections are opened as they are needed: one job at a time needs one of each. The jobs of a pool of
    # threads share two. If the ends of two jobs wait for locks, the heartbeat, its clock and the time limit
    # have theirs.
    heartbeat_database = Database(url, size=3, repetitive=True)
    return Worker(
        database=Database(url, size=2, repetitive=True),
        clock=ledger_clock(heartbeat_database, settings.lease),
        lease=settings.lease,
        max_attempts=settings.sync_max_attempts,
        retry_on=loaded_at_first_error(settings.sync_retry_on),
        heartbeat_database=heartbeat_database,
        timeout_seconds=settings.job_timeout_seconds or None,
        memory=pool_memory.shared(),
    )
