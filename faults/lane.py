"""A lane: a database, a Redis database, a worker and a reconciler, which play one fault at a time."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from faults import databases, handler, invariants
from faults.children import Child
from faults.faults import USERS_PER_FAULT, Fault
from tests.support.waiting import Overdue, wait_until

SLACK_SECONDS = 12.0
"""What each bound on a repair allows for busy cores."""
REPAIR_SECONDS = 3.0 + 3.0 + 2.0 + SLACK_SECONDS
"""The documented bound, for a reconcile interval of 1 s and passes of 1 s (a pass looks twice for lost
messages): a dead tick's lease and a pass; a lost message's grace time and a pass; and the pass that finds
the run finished.
"""
WORKER_LEASE_SECONDS = 10
_END_SECONDS = 60.0
_UNCAUGHT = 1
"""Python's exit status after an uncaught exception; no command of the product uses it."""
_UNKNOWN_JOB = "status=unknown"


class Broken(Exception):
    """An invariant is broken. The message names the fault and what differs."""


@dataclass
class Lane:
    """One lane and its processes.

    The processes connect by `database_url` and `redis_url`, which may lead through a proxy. The suite's
    own queries go to `direct_url`, past any proxy.
    """

    name: str
    folder: Path
    direct_url: str
    database_url: str
    redis_url: str
    publisher: str
    worker_queues: str = "daily"
    worker_pool: str = "solo"
    worker_concurrency: int = 1
    worker_lease_seconds: int = WORKER_LEASE_SECONDS
    extra: Mapping[str, str] = field(default_factory=dict)
    has_reconciler: bool = True
    tick_seconds: float = 0.0  # how long an undisturbed tick takes, to choose a random time within it
    killed: set[str] = field(default_factory=set)
    ended_by_themselves: int = 0
    played: list[Fault] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    _permanent: dict[str, Child] = field(default_factory=dict)

    @property
    def record(self) -> Path:
        return self.folder / "record"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every child of the lane, in which the product's time limits are short."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(self.folder),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "PUBLISHER": self.publisher,
            "USERS_RELATION": "participants",
            "ENQUEUE_BATCH_SIZE": "20",
            "ENQUEUE_SLEEP_SECONDS": "0",
            "RECONCILE_INTERVAL_SECONDS": "1",
            "LEASE_SECONDS": "1",
            "MESSAGE_GRACE_SECONDS": "1",
            "VISIBILITY_TIMEOUT_SECONDS": "2",
            "DAILY_TICK_CRON": "0 0 1 1 *",  # no day is due by itself: the suite starts them
            "SYNC_HANDLER": "faults.handler:handle",
            handler.RECORD: str(self.record),
            **self.extra,
        }

    def start(self) -> None:
        """Starts the permanent processes: the worker and, unless the lane has none, the reconciler."""
        self.folder.mkdir()
        self.supervise()

    def supervise(self) -> None:
        """Restarts the permanent processes that have ended, as a platform does."""
        names = ["worker", *(["reconciler"] if self.has_reconciler else [])]
        for name in names:
            child = self._permanent.get(name)
            if child is None or not child.running:
                if child is not None and child.name not in self.killed:
                    self.ended_by_themselves += 1
                self._permanent[name] = self._started(name)

    def current(self, name: str) -> Child:
        """The worker or the reconciler that was started last."""
        return self._permanent[name]

    def kill(self, name: str) -> bool:
        """Kills a permanent process and waits for its end; `supervise` starts another one.

        Returns whether it was alive until then.
        """
        child = self._permanent[name]
        self.killed.add(child.name)
        child.kill()
        child.wait(_END_SECONDS)
        return child.was_killed

    def launch(self, arguments: list[str], log: str, **changes: str) -> Child:
        """Starts another child, with changes to its environment."""
        child = Child(arguments, {**self.environment, **changes}, self.folder / f"{log}.log")
        self.children.append(child)
        return child

    def tick(self, fault: Fault, log: str = "tick", **changes: str) -> Child:
        """Starts the tick of the fault's partition."""
        arguments = ["scheduler", "daily", "--date", str(fault.day)]
        # Each fault has its own lock id, so that the lock of a dead tick does not refuse the next fault's.
        return self.launch(arguments, log, SCHEDULER_DAILY_LOCK_ID=str(1000 + fault.number), **changes)

    def finish(self, fault: Fault, *children: Child) -> None:
        """Waits for ticks or passes to end: killed, or with a documented exit status. Raises Broken."""
        for child in children:
            if not child.wait(_END_SECONDS):
                raise Broken(f"{fault}: {child.name} did not end in {_END_SECONDS:.0f} s")
            if child.exit_status == _UNCAUGHT:
                raise Broken(f"{fault}: {child.name} ended with an uncaught exception: {child.last_error}")

    def prepare(self, fault: Fault, late: int = 0, times: int = 1) -> None:
        """Makes the product see the users of this fault. times: how often the relation repeats each."""
        databases.show_participants(self.direct_url, fault.first_user, USERS_PER_FAULT, late, times)
        self.played.append(fault)

    def await_repair(self, fault: Fault, seconds: float = REPAIR_SECONDS) -> float:
        """Waits until nothing is left to repair, then checks everything; returns the seconds it took.

        Raises Broken.
        """
        started = time.monotonic()
        again: Child | None = None

        def repaired() -> bool:
            nonlocal again
            self.supervise()
            rest = self.unfinished(fault)
            if invariants.NO_RUN in rest and (again is None or not again.running):
                # A tick that died before it wrote its first row left no trace: only another tick of the
                # same day can repair that.
                again = self.tick(fault)
            return not rest

        try:
            wait_until(repaired, seconds, "repair", poll_seconds=0.1)
        except Overdue:
            rest = self.unfinished(fault)
            rest.append(self._broker_holds())
            raise Broken(f"{fault}: after {seconds:.0f} s: {'; '.join(rest)}") from None
        self.check(fault)
        return time.monotonic() - started

    def check(self, fault: Fault) -> None:
        """Checks everything that must stay true of a fault's partition. Raises Broken."""
        found = invariants.broken(self.direct_url, fault, self.record, frozenset(self.killed))
        found += self.unfinished(fault)
        worker_log = self.folder / "worker.log"
        if worker_log.exists() and _UNKNOWN_JOB in worker_log.read_text(errors="replace"):
            found.append("a worker received a message whose job is not in Postgres")
        if found:
            raise Broken(f"{fault}: {'; '.join(found)}")

    def leases_ran_out(self, fault: Fault) -> bool:
        """Whether the leases of a dead tick have expired, so that reconcile may take over."""
        return invariants.leases_ran_out(self.direct_url, fault)

    def stop(self) -> None:
        """Ends all children of the lane."""
        for child in self.children:
            child.kill()
            child.wait(10)

    def chance(self, fault: Fault) -> random.Random:
        """The random numbers of a fault."""
        return random.Random(fault.seed)

    def unfinished(self, fault: Fault) -> list[str]:
        """Returns what is left to repair or to do, or the error if Postgres does not answer."""
        try:
            return invariants.unfinished(self.direct_url, fault)
        except psycopg.OperationalError as error:  # it is being restarted
            return [str(error)]

    def open_jobs(self) -> int:
        """Counts the jobs of all runs that are not final."""
        return invariants.open_jobs(self.direct_url)

    def _broker_holds(self) -> str:
        """Describes the queue, for the reader of the error who must find out why a job still waits."""
        try:
            with Redis.from_url(self.redis_url, socket_timeout=5) as redis:
                waiting, taken = redis.llen("daily"), redis.hlen("unacked")
                mutex_seconds = redis.ttl("unacked_mutex")
        except RedisError as error:
            return str(error)
        return (
            f"Redis holds {waiting} waiting and {taken} unacknowledged messages;"
            f" unacked_mutex expires in {mutex_seconds} s"
        )

    def _started(self, name: str) -> Child:
        return self.reconciler() if name == "reconciler" else self.worker()

    def reconciler(self, log: str = "reconciler", **changes: str) -> Child:
        """Starts a reconciler."""
        return self.launch(["reconciler"], log, **changes)

    def worker(self, log: str = "worker", **changes: str) -> Child:
        """Starts a worker."""
        arguments = ["celery", "-A", "worker_scheduler", "worker", "-Q", self.worker_queues]
        options = ["--pool", self.worker_pool, "-c", str(self.worker_concurrency), "--loglevel", "INFO"]
        quiet = ["--without-gossip", "--without-mingle", "-n", f"{self.name}-{log}@%h"]
        # A worker gets longer leases, because a busy machine may stop it for a second.
        lease = {"LEASE_SECONDS": str(self.worker_lease_seconds)}
        return self.launch([*arguments, *options, *quiet], log, **lease, **changes)
