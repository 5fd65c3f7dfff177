"""Which lane plays which faults. A lane that breaks what others use has servers of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

from faults import (
    broker_faults,
    clock_faults,
    databases,
    handler,
    handler_faults,
    lock_faults,
    older_data,
    process_faults,
    programs,
    step_faults,
    store_faults,
    view_faults,
)
from faults.faults import ANYWHERE, STEPS, USERS_PER_FAULT, Fault, Kind
from faults.lane import REPAIR_SECONDS, Lane
from faults.proxy import Proxy, Trap
from faults.servers import Servers
from faults.store_faults import Stores

_LANES = 6
"""Lanes for the faults that do not touch servers or workers. A lane mostly waits for leases to expire."""
_WORKER_LANES = ("solo", "prefork")

Play = Callable[[Lane, Fault], bool]
_STORES = frozenset({Kind.RESTART, Kind.FLUSH, Kind.STALL, Kind.FULL})
_WORKERS = frozenset({Kind.BUSY_WORKER, Kind.IDLE_WORKER})
_HANDLERS = frozenset({Kind.BAD_HANDLER, Kind.STUBBORN_HANDLER})


class MakeLane(Protocol):
    """Starts a lane on a pair of servers; `more` are fields of Lane."""

    def __call__(self, pair: Servers, name: str, **more: object) -> Lane: ...


@dataclass
class Assignment:
    """A lane and the queue from which it takes its faults. Lanes may share a queue.

    repair_seconds: the bound on a repair, also by kind.
    """

    lane: Lane
    waiting: queue.SimpleQueue[Fault]
    play: Play
    repair_seconds: float | Mapping[Kind, float] = REPAIR_SECONDS

    def bound_seconds(self, fault: Fault) -> float:
        """The bound on the repair of a fault."""
        bound = self.repair_seconds
        return bound if isinstance(bound, float) else bound[fault.kind]


@dataclass
class Assigner:
    """Makes the lanes for the faults of a run, except the first one.

    common: the servers of lanes that break none. other_servers: starts another pair. spare_run: returns a
    partition that no fault has.
    """

    stack: ExitStack
    common: Servers
    make_lane: MakeLane
    other_servers: Callable[[], AbstractContextManager[Servers]]
    spare_run: Callable[[], Fault]

    def assign(self, first: Lane, faults: list[Fault]) -> list[Assignment]:
        """Starts a lane for each kind of fault that is among the faults; `first` gets some, too."""
        assignments = list(self._anywhere(first, _queue_of(faults, *ANYWHERE)))
        for kinds, make in (
            (_WORKERS, self._workers),
            ({Kind.HELD, Kind.AWAY}, self._held),
            (_HANDLERS, self._bad_handlers),
            ({Kind.BEAT}, self._beats),
            ({Kind.WRONG_CLOCK}, self._wrong_clock),
            ({Kind.BROKEN_VIEW}, self._broken_view),
            ({Kind.SILENT_BROKER}, self._silent_broker),
            ({Kind.OLDER_DATA}, self._older_data),
            (_STORES, self._stores),
        ):
            waiting = _queue_of(faults, *kinds)
            if not waiting.empty():
                assignments += make(waiting)
        return assignments

    def _anywhere(self, first: Lane, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        yield Assignment(first, waiting, _play_anywhere)
        for number in range(1, _LANES):
            yield Assignment(self.make_lane(self.common, f"steps-{number}"), waiting, _play_anywhere)

    def _workers(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        for pool in _WORKER_LANES:
            lane = self.make_lane(
                self.common,
                f"workers-{pool}",
                worker_pool=pool,
                worker_lease_seconds=3,
                extra={handler.SECONDS: str(process_faults.HANDLER_SECONDS)},
            )
            seconds = process_faults.WORKER_REPAIR_SECONDS
            yield Assignment(lane, waiting, process_faults.kill_worker, seconds)

    def _held(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        database_url = databases.with_database(self.common.database_url, "held")
        postgres = self.stack.enter_context(Proxy(database_url, Trap()))
        lane = self.make_lane(
            self.common,
            "held",
            database_url=postgres.url,
            worker_pool="threads",
            worker_concurrency=USERS_PER_FAULT,
            worker_lease_seconds=lock_faults.LEASE_SECONDS,
            extra={
                handler.SECONDS: str(lock_faults.HANDLER_SECONDS),
                "LEASE_SECONDS": str(lock_faults.LEASE_SECONDS),
                programs.PAUSE: "0.1",  # so that a pass often looks before the first heartbeat
            },
        )

        def play(lane: Lane, fault: Fault) -> bool:
            return lock_faults.hold(lane, postgres, fault)

        yield Assignment(lane, waiting, play, lock_faults.LOCK_REPAIR_SECONDS)

    def _bad_handlers(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        lane = self.make_lane(
            self.common,
            "bad-handlers",
            worker_pool="prefork",
            worker_concurrency=handler_faults.CONCURRENCY,
            worker_lease_seconds=3,
            extra=handler_faults.SETTINGS,
        )
        yield Assignment(lane, waiting, handler_faults.play, handler_faults.REPAIR)

    def _beats(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        """A lane for each fault, since each takes minutes."""
        for number in range(waiting.qsize()):
            lane = self.make_lane(
                self.common, f"beat-{number}", worker_queues="scheduler,daily", has_reconciler=False
            )
            seconds = process_faults.BEAT_REPAIR_SECONDS
            yield Assignment(lane, waiting, process_faults.kill_beat, seconds)

    def _wrong_clock(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        lane = self.make_lane(
            self.common,
            "wrong-clock",
            worker_pool="threads",
            worker_concurrency=clock_faults.CONCURRENCY,
            extra={handler.SECONDS: str(clock_faults.HANDLER_SECONDS), **clock_faults.CALENDAR},
        )
        yield Assignment(lane, waiting, clock_faults.play)

    def _broken_view(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        lane = self.make_lane(
            self.common, "broken-view", extra={handler.SECONDS: str(view_faults.HANDLER_SECONDS)}
        )

        def play(lane: Lane, fault: Fault) -> bool:
            return view_faults.play(lane, fault, self.spare_run)

        yield Assignment(lane, waiting, play)

    def _silent_broker(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        yield Assignment(self.make_lane(self.common, "silent-broker"), waiting, broker_faults.play)

    def _older_data(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        pair = self.stack.enter_context(self.other_servers())
        lane = self.make_lane(pair, "older-data", extra={handler.SECONDS: str(older_data.HANDLER_SECONDS)})

        def play(lane: Lane, fault: Fault) -> bool:
            return older_data.play(lane, pair, fault)

        yield Assignment(lane, waiting, play)

    def _stores(self, waiting: queue.SimpleQueue[Fault]) -> Iterator[Assignment]:
        pair = self.stack.enter_context(self.other_servers())
        trap = Trap()
        database_url = databases.with_database(pair.database_url, "stores")
        postgres = self.stack.enter_context(Proxy(database_url, trap))
        redis = self.stack.enter_context(Proxy(pair.redis_url, trap))
        lane = self.make_lane(
            pair,
            "stores",
            database_url=postgres.url,
            redis_url=redis.url,
            extra={handler.SECONDS: "0.02"},
        )
        stores = Stores(pair, trap)

        def play(lane: Lane, fault: Fault) -> bool:
            return store_faults.play(lane, stores, fault)

        yield Assignment(lane, waiting, play, store_faults.STORE_REPAIR_SECONDS)


def _play_anywhere(lane: Lane, fault: Fault) -> bool:
    if fault.kind in STEPS:
        return step_faults.at_a_command(lane, fault)
    if fault.kind is Kind.RANDOM_TICK:
        return step_faults.tick_at_a_random_time(lane, fault)
    if fault.kind is Kind.RANDOM_RECONCILE:
        return step_faults.reconciler_at_a_random_time(lane, fault)
    return step_faults.herd(lane, fault)


def _queue_of(faults: list[Fault], *kinds: Kind) -> queue.SimpleQueue[Fault]:
    waiting: queue.SimpleQueue[Fault] = queue.SimpleQueue()
    for fault in faults:
        if fault.kind in kinds:
            waiting.put(fault)
    return waiting
