"""The rule dead_workers: takes the jobs of dead workers away from them.

A lease that has run out does not show yet that its worker is dead. While a table was locked or Postgres was
away, no worker could renew a lease. So this rule looks again after half a lease, in which a living worker
has two heartbeats, and judges only leases that have not changed. In between it does what a heartbeat does,
again and again; if that takes too long, it starts over.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Self

from worker_scheduler import logs
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import dead_workers as ledger
from worker_scheduler.ledger.dead_workers import Page

log = logs.get_logger(__name__)

_LOOKS = 4
"""Looks after the first one, at equal distances."""
_TRIES = 4
"""How often a pass begins with the first look. After that it leaves the judgement to the next pass."""


def dead_workers(context: TickContext) -> int:
    """Makes RUNNING jobs of dead workers PENDING again; after SYNC_MAX_ATTEMPTS, FAILED.

    Takes half a lease if a lease has run out; see `Judge`.
    """
    return _judge(context, _first_look(context))


class Judge:
    """The rule dead_workers in two parts, between which other rules run: it waits in a thread of its own.

    As a context manager, it ends the thread when the block is left.
    """

    def __init__(self, context: TickContext) -> None:
        self._stop = threading.Event()
        self._original = context
        self._context = replace(context, pause=self._pause)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dead workers")
        self._judgement: Future[int] | None = None

    def begin(self) -> int:
        """Takes the first look; returns 0, since nothing is judged yet. Raises as Database does."""
        pages = _first_look(self._context)
        if pages:
            self._judgement = self._thread.submit(_judge, self._context, pages)
        return 0

    def end(self) -> int:
        """Waits for the judgement; returns how many jobs were taken away. Raises as Database does."""
        return 0 if self._judgement is None else self._judgement.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.shutdown()

    def _pause(self, seconds: float) -> None:
        self._original.pause(seconds)
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The pass has ended before the judgement."""


def _judge(context: TickContext, pages: list[Page]) -> int:
    """Takes away what stays unchanged for half a lease. Tries again if it could not see the whole time."""
    for _ in range(_TRIES):
        if not pages:
            return 0
        unchanged = _watch(context, pages)
        if unchanged is not None:
            return sum(_take_away(context, page) for page in unchanged)
        pages = _first_look(context)
    log.warning("dead workers not judged, Postgres was too slow to show a heartbeat")
    return 0


def _first_look(context: TickContext) -> list[Page]:
    with context.database.transaction() as connection:
        pages = ledger.expired(connection, context.clock())
    return _look_again(context, pages)


def _watch(context: TickContext, pages: list[Page]) -> list[Page] | None:
    """Looks again and again for half a lease. Returns what has not changed; None if a look came so late
    that a heartbeat may have been held up for just as long.
    """
    lease = context.settings.lease
    step = lease.seconds / 2 / _LOOKS
    for _ in range(_LOOKS):
        began = context.clock()
        context.pause(step)
        pages = _look_again(context, pages)
        if context.clock() - began > timedelta(seconds=step + lease.heartbeat_seconds):
            return None
    return pages


def _look_again(context: TickContext, pages: list[Page]) -> list[Page]:
    """The pages without what has changed, or is locked."""
    if not pages:
        return []
    with context.database.transaction() as connection:
        ledger.wait_as_a_heartbeat(connection)
    with context.database.autocommit() as connection:
        looked = [ledger.still_expired(connection, page) for page in pages]
    return [page for page in looked if page is not None]


def _take_away(context: TickContext, page: Page) -> int:
    attempts = context.settings.sync_max_attempts
    with context.database.autocommit() as connection:
        return sum(
            move(connection, page, now=context.clock(), max_attempts=attempts)
            for move in (ledger.give_up, ledger.rescue)
        )
