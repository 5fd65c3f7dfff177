"""One run of the suite: starts servers and lanes, hands them the faults, and checks all at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from faults import (
    children,
    databases,
    handler,
    invariants,
    process_faults,
    programs,
    step_faults,
    store_faults,
)
from faults.faults import (
    ANYWHERE,
    DEFAULT_FAULTS,
    FEWEST_FAULTS,
    STEPS,
    USERS_A_FAULT,
    Fault,
    Kind,
    choose,
)
from faults.lane import REPAIR_SECONDS, Broken, Lane
from faults.proxy import Proxy, Trap
from faults.report import Report, say
from faults.servers import Servers, servers
from faults.store_faults import Stores

_LANES = 6
"""Of the faults that leave servers and workers alone. A lane mostly waits for leases to run out."""
_WORKER_LANES = ("solo", "prefork")
_PEAK_MIB = 256
"""No process may need more; a Python that has imported Celery and SQLAlchemy needs about 90 MiB."""
_ROOM = 2_000
"""Users for more faults than were asked for, and for those that only count commands."""

Play = Callable[[Lane, Fault], bool]
_STORES = frozenset({Kind.RESTART, Kind.FLUSH, Kind.STALL, Kind.FULL})
_WORKERS = frozenset({Kind.BUSY_WORKER, Kind.IDLE_WORKER})


@dataclass
class _Station:
    """A lane with the faults that it takes from, shared or its own."""

    lane: Lane
    waiting: queue.SimpleQueue[Fault]
    play: Play
    repair_seconds: float = REPAIR_SECONDS


class Run:
    """The lanes of one run, and what they have in common."""

    def __init__(
        self, folder: Path, seed: int, count: int, publisher: str, only: frozenset[Kind] | None
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._count = count
        self._publisher = publisher
        self._only = only
        self._users = (count + _ROOM // USERS_A_FAULT) * USERS_A_FAULT * 2
        self._spare = self._users // USERS_A_FAULT
        self._tick_seconds = 0.0
        self._stopping = threading.Event()
        self._report = Report()
        self._lanes: list[Lane] = []

    def play(self) -> None:
        """Plays all faults and prints their table. Raises Broken at the first broken invariant."""
        children.warm_up()
        with ExitStack() as stack:
            stack.callback(self._stop)
            common = stack.enter_context(self._servers())
            first = self._lane(common, "steps-0")
            steps = self._count_commands(first)
            self._tick_seconds = first.tick_seconds = self._measure_tick(first)
            faults = choose(self._seed, self._count, steps, self._only)
            counted = ", ".join(f"{kind.name} {commands}" for kind, commands in steps.items())
            say(f"{len(faults)} faults; undisturbed: {counted} commands; a tick {self._tick_seconds:.2f} s")
            stations = self._stations(stack, common, first, faults)
            with ThreadPoolExecutor(len(stations)) as threads:
                for outcome in [threads.submit(self._work, station) for station in stations]:
                    outcome.result()
            self._check_everything()
        self._check_memory()
        self._report.show()
        self._check_number()

    @contextmanager
    def _servers(self) -> Iterator[Servers]:
        with servers() as pair:
            databases.make_template(pair.database_url, self._users)
            yield pair

    def _lane(self, pair: Servers, name: str, **more: object) -> Lane:
        url = databases.make_database(pair.database_url, name)
        redis_url = databases.with_database(pair.redis_url, len(self._lanes))
        parts = {
            "database_url": url,
            "redis_url": redis_url,
            "publisher": self._publisher,
            "tick_seconds": self._tick_seconds,
            **more,
        }
        lane = Lane(name=name, folder=self._folder / name, direct_url=url, **parts)  # type: ignore[arg-type]
        self._lanes.append(lane)
        lane.start()
        return lane

    def _count_commands(self, lane: Lane) -> dict[Kind, int]:
        """Twice each, and the smaller number: the threads of a tick differ by a command or two."""
        kinds = [kind for kind in STEPS if self._only is None or kind in self._only]
        counts = dict.fromkeys(STEPS, 0)
        for kind in [*kinds, *kinds]:
            fault = self._undisturbed(kind)
            commands = step_faults.count_commands(lane, fault)
            counts[kind] = min(counts[kind] or commands, commands)
            lane.await_repair(fault)
        return counts

    def _measure_tick(self, lane: Lane) -> float:
        """The shorter of two, so that what is to happen within a tick's time rarely comes too late."""
        seconds = []
        for fault in (self._undisturbed(Kind.RANDOM_TICK), self._undisturbed(Kind.RANDOM_TICK)):
            seconds.append(step_faults.measure_tick(lane, fault))
            lane.await_repair(fault)
        return min(seconds)

    def _undisturbed(self, kind: Kind) -> Fault:
        """No fault, but the partition and users of one, from the far end of their numbers."""
        self._spare -= 1
        return Fault(self._spare, kind, seed=0)

    def _stations(
        self, stack: ExitStack, common: Servers, first: Lane, faults: list[Fault]
    ) -> list[_Station]:
        anywhere = _queue_of(faults, frozenset(ANYWHERE))
        stations = [_Station(first, anywhere, _play_anywhere)]
        for number in range(1, _LANES):
            stations.append(_Station(self._lane(common, f"steps-{number}"), anywhere, _play_anywhere))
        workers = _queue_of(faults, _WORKERS)
        for pool in _WORKER_LANES if not workers.empty() else ():
            lane = self._lane(
                common,
                f"workers-{pool}",
                worker_pool=pool,
                worker_lease_seconds=3,
                extra={handler.SECONDS: str(process_faults.HANDLER_SECONDS)},
            )
            seconds = process_faults.WORKER_REPAIR_SECONDS
            stations.append(_Station(lane, workers, process_faults.kill_worker, seconds))
        for fault in faults:
            if fault.kind is Kind.BEAT:
                name = f"beat-{fault.number}"
                lane = self._lane(common, name, worker_queues="scheduler,daily", has_reconciler=False)
                waiting = _queue_of([fault], frozenset({Kind.BEAT}))
                seconds = process_faults.BEAT_REPAIR_SECONDS
                stations.append(_Station(lane, waiting, process_faults.kill_beat, seconds))
        if any(fault.kind in _STORES for fault in faults):
            stations.append(self._store_station(stack, _queue_of(faults, _STORES)))
        return stations

    def _store_station(self, stack: ExitStack, waiting: queue.SimpleQueue[Fault]) -> _Station:
        pair = stack.enter_context(self._servers())
        trap = Trap()
        database_url = databases.with_database(pair.database_url, "stores")
        postgres = stack.enter_context(Proxy(database_url, trap))
        redis = stack.enter_context(Proxy(pair.redis_url, trap))
        lane = self._lane(
            pair,
            "stores",
            database_url=postgres.url,
            redis_url=redis.url,
            extra={handler.SECONDS: "0.02"},
        )
        stores = Stores(pair, trap)
        seconds = store_faults.STORE_REPAIR_SECONDS
        return _Station(lane, waiting, lambda lane, fault: store_faults.play(lane, stores, fault), seconds)

    def _work(self, station: _Station) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    fault = station.waiting.get_nowait()
                except queue.Empty:
                    return
                reached = station.play(station.lane, fault)
                seconds = station.lane.await_repair(fault, station.repair_seconds)
                self._report.played(fault, reached, seconds)
        except BaseException:
            self._stopping.set()
            raise

    def _check_everything(self) -> None:
        """Each partition again, at least one lane's length of time after its own check."""
        for lane in self._lanes:
            for fault in lane.played:
                lane.check(fault)
                self._report.handled_again += invariants.handled_again(lane.direct_url, fault, lane.record)
            with psycopg.connect(lane.direct_url) as connection:
                row = connection.execute(
                    "SELECT count(DISTINCT user_id), count(*) FROM sync_jobs"
                ).fetchone()
            assert row is not None
            self._report.users += row[0]
            self._report.jobs += row[1]
            self._report.ended_by_themselves += lane.ended_by_themselves

    def _check_memory(self) -> None:
        for lane in self._lanes:
            for child in lane.children:
                self._report.peak_kib = max(self._report.peak_kib, child.peak_kib)
            self._report.peak_kib = max(self._report.peak_kib, programs.highest_peak(lane.folder))
        if self._report.peak_kib > _PEAK_MIB * 1024:
            raise Broken(f"a process needed {self._report.peak_kib // 1024} MiB, more than {_PEAK_MIB}")

    def _check_number(self) -> None:
        whole = self._only is None and self._count >= DEFAULT_FAULTS
        if whole and self._report.faults < FEWEST_FAULTS:
            raise Broken(f"only {self._report.faults} faults have struck, fewer than {FEWEST_FAULTS}")

    def _stop(self) -> None:
        for lane in self._lanes:
            lane.stop()


def _play_anywhere(lane: Lane, fault: Fault) -> bool:
    if fault.kind in STEPS:
        return step_faults.at_a_command(lane, fault)
    if fault.kind is Kind.RANDOM_TICK:
        return step_faults.tick_at_a_random_time(lane, fault)
    if fault.kind is Kind.RANDOM_RECONCILE:
        return step_faults.reconciler_at_a_random_time(lane, fault)
    return step_faults.herd(lane, fault)


def _queue_of(faults: list[Fault], kinds: frozenset[Kind]) -> queue.SimpleQueue[Fault]:
    waiting: queue.SimpleQueue[Fault] = queue.SimpleQueue()
    for fault in faults:
        if fault.kind in kinds:
            waiting.put(fault)
    return waiting
