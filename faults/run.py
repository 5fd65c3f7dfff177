"""One run of the suite: starts servers and lanes, gives them the faults, checks everything at the end."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from faults import children, clock_faults, databases, invariants, programs, step_faults
from faults.assignments import Assigner, Assignment
from faults.faults import DEFAULT_FAULTS, FEWEST_FAULTS, STEPS, USERS_PER_FAULT, Fault, Kind, choose
from faults.lane import Broken, Lane
from faults.report import Report, say
from faults.servers import Servers, servers

_PEAK_MIB = 256
"""No process may need more. A Python that has imported Celery and SQLAlchemy needs about 90 MiB."""
_SPARE_USERS = 2_000
"""Users beyond those of the requested faults: for further faults, and for the runs that count commands."""


class Run:
    """One run: its lanes, and what they have in common."""

    def __init__(
        self, folder: Path, seed: int, count: int, publisher: str, only: frozenset[Kind] | None
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._count = count
        self._publisher = publisher
        self._only = only
        self._users = (count + _SPARE_USERS // USERS_PER_FAULT) * USERS_PER_FAULT * 2
        self._last_number = self._users // USERS_PER_FAULT
        self._tick_seconds = 0.0
        self._stopping = threading.Event()
        self._report = Report()
        self._lanes: list[Lane] = []
        self._lanes_on: Counter[str] = Counter()

    def play(self) -> None:
        """Plays all faults and prints the table. Raises Broken at the first broken invariant."""
        children.warm_up()
        with ExitStack() as stack:
            stack.callback(self._stop)
            common = stack.enter_context(self._servers())
            first = self._lane(common, "steps-0")
            steps = self._count_commands(first)
            self._tick_seconds = first.tick_seconds = self._measure_tick(first)
            faults = choose(self._seed, self._count, steps, self._only, self._unplayable())
            counted = ", ".join(f"{kind.name} {commands}" for kind, commands in steps.items())
            say(f"{len(faults)} faults; undisturbed: {counted} commands; a tick {self._tick_seconds:.2f} s")
            assigner = Assigner(stack, common, self._lane, self._servers, self._spare_run)
            assignments = assigner.assign(first, faults)
            with ThreadPoolExecutor(len(assignments)) as threads:
                for outcome in [threads.submit(self._work, assignment) for assignment in assignments]:
                    outcome.result()
            self._check_everything()
        self._check_memory()
        self._report.show()
        self._check_number()

    def _unplayable(self) -> frozenset[Kind]:
        """The kinds that this machine cannot play, which the run says when it begins and in its table."""
        kinds = clock_faults.unplayable() & (self._only or frozenset(Kind))
        for kind in kinds:
            if self._only:
                raise Broken(f"{kind}: {clock_faults.MISSING}")
            self._report.not_played[kind] = clock_faults.MISSING
            say(f"NOT PLAYED: {kind}: {clock_faults.MISSING}")
        return kinds

    @contextmanager
    def _servers(self) -> Iterator[Servers]:
        with servers() as pair:
            databases.make_template(pair.database_url, self._users)
            yield pair

    def _lane(self, pair: Servers, name: str, **more: object) -> Lane:
        url = databases.make_database(pair.database_url, name)
        redis_url = databases.with_database(pair.redis_url, self._lanes_on[pair.redis_url])
        self._lanes_on[pair.redis_url] += 1  # a Valkey has 16 databases
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
        """Counts twice for each kind and takes the smaller number, which varies by a command or two.

        A tick uses several threads, and their timing differs from run to run.
        """
        kinds = [kind for kind in STEPS if self._only is None or kind in self._only]
        counts = dict.fromkeys(STEPS, 0)
        for kind in [*kinds, *kinds]:
            fault = self._undisturbed(kind)
            commands = step_faults.count_commands(lane, fault)
            counts[kind] = min(counts[kind] or commands, commands)
            lane.await_repair(fault)
        return counts

    def _measure_tick(self, lane: Lane) -> float:
        """Returns the shorter of two times, so that a random moment within it rarely comes too late."""
        seconds = []
        for fault in (self._undisturbed(Kind.RANDOM_TICK), self._undisturbed(Kind.RANDOM_TICK)):
            seconds.append(step_faults.measure_tick(lane, fault))
            lane.await_repair(fault)
        return min(seconds)

    def _spare_run(self) -> Fault:
        return self._undisturbed(Kind.BROKEN_VIEW)

    def _undisturbed(self, kind: Kind) -> Fault:
        """Returns a fault only for its partition and users, numbered from the end to avoid the others."""
        self._last_number -= 1
        return Fault(self._last_number, kind, seed=0)

    def _work(self, assignment: Assignment) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    fault = assignment.waiting.get_nowait()
                except queue.Empty:
                    return
                reached = assignment.play(assignment.lane, fault)
                seconds = assignment.lane.await_repair(fault, assignment.bound_seconds(fault))
                self._report.played(fault, reached, seconds)
        except BaseException:
            self._stopping.set()
            raise

    def _check_everything(self) -> None:
        """Checks each partition again after the last fault of all lanes."""
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
        if whole and self._report.never_struck:
            raise Broken(f"not a single fault has struck of: {', '.join(self._report.never_struck)}")
        if whole and self._report.faults < FEWEST_FAULTS:
            raise Broken(f"only {self._report.faults} faults have struck, fewer than {FEWEST_FAULTS}")

    def _stop(self) -> None:
        for lane in self._lanes:
            lane.stop()
