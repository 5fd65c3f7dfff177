"""A lane: a database, a Redis database, a worker and a reconciler of its own, for one fault at a time."""

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
from faults.faults import USERS_A_FAULT, Fault
from faults.waiting import Overdue, wait_until

SLACK_SECONDS = 12.0
"""For busy cores, in each bound of a repair."""
REPAIR_SECONDS = 3.0 + 3.0 + 2.0 + SLACK_SECONDS
"""Documented, with an interval of 1 s and passes of 1 s (they look twice for lost messages): a dead tick's
lease and a pass; a lost message's grace time and a pass; the pass that finds the run finished.
"""
WORKER_LEASE_SECONDS = 10
_END_SECONDS = 60.0
_UNCAUGHT = 1
"""Python's exit status after an exception that nobody caught; no command of the product means it."""
_UNKNOWN_JOB = "status=unknown"


class Broken(Exception):
    """A broken invariant; the message names the fault and the difference."""


@dataclass
class Lane:
    """Its parts. Everything goes to the servers by `database_url` and `redis_url`; the suite's own
    questions go past any proxy, by `direct_url`.
    """

    name: str
    folder: Path
    direct_url: str
    database_url: str
    redis_url: str
    publisher: str
    worker_queues: str = "daily"
    worker_pool: str = "solo"
    worker_lease_seconds: int = WORKER_LEASE_SECONDS
    extra: Mapping[str, str] = field(default_factory=dict)
    has_reconciler: bool = True
    tick_seconds: float = 0.0  # an undisturbed tick's, for whoever kills one at a random time
    killed: set[str] = field(default_factory=set)
    ended_by_themselves: int = 0
    played: list[Fault] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    _standing: dict[str, Child] = field(default_factory=dict)

    @property
    def record(self) -> Path:
        return self.folder / "record"

    @property
    def environment(self) -> dict[str, str]:
        """Of every child of the lane. Each bound of the product is made short."""
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
            "DAILY_TICK_CRON": "0 0 1 1 *",  # days start when the suite says so
            "SYNC_HANDLER": "faults.handler:handle",
            handler.RECORD: str(self.record),
            **self.extra,
        }

    def start(self) -> None:
        """Starts what stands throughout: the worker and, where it has one, the reconciler."""
        self.folder.mkdir()
        self.supervise()

    def supervise(self) -> None:
        """Starts what is not running, as a platform does."""
        names = ["worker", *(["reconciler"] if self.has_reconciler else [])]
        for name in names:
            child = self._standing.get(name)
            if child is None or not child.running:
                if child is not None and child.name not in self.killed:
                    self.ended_by_themselves += 1
                self._standing[name] = self._started(name)

    def standing(self, name: str) -> Child:
        """The worker or the reconciler of now."""
        return self._standing[name]

    def kill(self, name: str) -> bool:
        """SIGKILL to one that stands throughout, and its end; `supervise` starts another.

        Says whether it lived until then.
        """
        child = self._standing[name]
        self.killed.add(child.name)
        child.kill()
        child.wait(_END_SECONDS)
        return child.was_killed

    def launch(self, arguments: list[str], log: str, **changes: str) -> Child:
        """Starts another child, with changes to its environment."""
        child = Child(arguments, {**self.environment, **changes}, self.folder / f"{log}.log")
        self.children.append(child)
        return child

    def tick(self, fault: Fault, **changes: str) -> Child:
        """Starts the tick of the fault's partition."""
        arguments = ["scheduler", "daily", "--date", str(fault.day)]
        # A lock of its own for each fault, so that a dead one's does not refuse the next.
        return self.launch(arguments, "tick", SCHEDULER_DAILY_LOCK_ID=str(1000 + fault.number), **changes)

    def finish(self, fault: Fault, *children: Child) -> None:
        """Waits for the ends of ticks or passes: by a kill, or with a status that is documented."""
        for child in children:
            if not child.wait(_END_SECONDS):
                raise Broken(f"{fault}: {child.name} did not end in {_END_SECONDS:.0f} s")
            if child.exit_status == _UNCAUGHT:
                raise Broken(f"{fault}: {child.name} ended with an error of its own: {child.last_error}")

    def prepare(self, fault: Fault, late: int = 0, times: int = 1) -> None:
        """The product now sees the users of this fault. times: how often the relation repeats each."""
        databases.show_participants(self.direct_url, fault.first_user, USERS_A_FAULT, late, times)
        self.played.append(fault)

    def await_repair(self, fault: Fault, seconds: float = REPAIR_SECONDS) -> float:
        """Waits until nothing is left to put right, then checks all; says how long it took.

        Raises Broken.
        """
        started = time.monotonic()
        again: Child | None = None

        def repaired() -> bool:
            nonlocal again
            self.supervise()
            rest = self.unfinished(fault)
            if invariants.NO_RUN in rest and (again is None or not again.running):
                # Nothing tells the product of a tick that died before its first row but the next ring.
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
        """Everything that must hold of a fault's partition for ever after. Raises Broken."""
        found = invariants.broken(self.direct_url, fault, self.record, frozenset(self.killed))
        found += self.unfinished(fault)
        worker_log = self.folder / "worker.log"
        if worker_log.exists() and _UNKNOWN_JOB in worker_log.read_text(errors="replace"):
            found.append("a worker was given a message whose job is not in Postgres")
        if found:
            raise Broken(f"{fault}: {'; '.join(found)}")

    def leases_ran_out(self, fault: Fault) -> bool:
        """Whether reconcile may take over what a dead tick has left."""
        return invariants.leases_ran_out(self.direct_url, fault)

    def stop(self) -> None:
        """Ends all children of the lane."""
        for child in self.children:
            child.kill()
            child.wait(10)

    def chance(self, fault: Fault) -> random.Random:
        """What is random in a fault."""
        return random.Random(fault.seed)

    def unfinished(self, fault: Fault) -> list[str]:
        """What is left to put right, or to do; or why Postgres cannot say it now."""
        try:
            return invariants.unfinished(self.direct_url, fault)
        except psycopg.OperationalError as error:  # it is being restarted
            return [str(error)]

    def _broker_holds(self) -> str:
        """What the queue looks like to whoever has to find out why a job still waits."""
        try:
            with Redis.from_url(self.redis_url, socket_timeout=5) as redis:
                waiting, taken = redis.llen("daily"), redis.hlen("unacked")
                mutex_seconds = redis.ttl("unacked_mutex")
        except RedisError as error:
            return str(error)
        return f"Redis holds {waiting} messages and {taken} taken ones, its mutex for {mutex_seconds} s"

    def _started(self, name: str) -> Child:
        if name == "reconciler":
            return self.launch(["reconciler"], "reconciler")
        arguments = ["celery", "-A", "worker_scheduler", "worker", "-Q", self.worker_queues]
        options = ["--pool", self.worker_pool, "-c", "1", "--loglevel", "INFO"]
        quiet = ["--without-gossip", "--without-mingle", "-n", f"{self.name}@%h"]
        # A worker's leases are longer, since a busy machine may stop it for a second.
        return self.launch(
            [*arguments, *options, *quiet], "worker", LEASE_SECONDS=str(self.worker_lease_seconds)
        )
