"""Runs the subjects in turns, each in a process and on a database of its own, and collects the figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Thread

import psycopg
from redis import Redis

from benchmarks.stores import StoreCopies, Stores


@dataclass(frozen=True, order=True)
class Subject:
    """What is measured, and with how many jobs per batch."""

    name: str
    batch_size: int


@dataclass
class Measured:
    """The figures of one subject: one list per figure, one entry per repetition."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    first_message_ms: list[float] = field(default_factory=list)
    again_seconds: list[float] = field(default_factory=list)
    status_ms: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """The figure that ratios are computed from."""
        return statistics.median(self.seconds)


def side_by_side(
    copies: StoreCopies,
    users: int,
    subjects: Sequence[Subject],
    repetitions: int,
    say: Callable[[str], None],
) -> dict[Subject, Measured]:
    """Measures all subjects in turns, so that a slow minute of the machine affects each of them."""
    measured = {subject: Measured() for subject in subjects}
    for _ in range(repetitions):
        for subject in subjects:
            with copies.fresh() as stores:
                _once(stores, users, subject, measured[subject])
            last = measured[subject].seconds[-1]
            say(f"{users:>9,} users  {subject.name} {subject.batch_size}: {last:.3f} s")
    return measured


def _once(stores: Stores, users: int, subject: Subject, into: Measured) -> None:
    watch = _FirstMessage(stores)
    figures = child(stores, subject)
    first_message_at = watch.ended()
    _require_complete(stores, users)
    into.seconds.append(figures["seconds"])
    into.peak_mib.append(figures["peak_kib"] / 1024)
    into.first_message_ms.append((first_message_at - figures["began"]) * 1000)
    if subject.name == "tick":
        into.again_seconds.append(child(stores, subject)["seconds"])
        _require_complete(stores, users)
        into.status_ms.append(_status_seconds(stores) * 1000)


def child(stores: Stores, subject: Subject) -> dict[str, float]:
    """Runs a subject in a process of its own; returns the figures that it prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.subjects", subject.name, str(subject.batch_size)],
        env={"PATH": os.environ["PATH"], **stores.environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def _status_seconds(stores: Stores) -> float:
    """Returns how long `scheduler status` of the partition takes, without the start of its process."""
    program = (
        "import time; from worker_scheduler.cli import run;"
        " from benchmarks.stores import KEY; started = time.perf_counter(); run(['status', KEY]);"
        " print(time.perf_counter() - started)"
    )
    environment = {"PATH": os.environ["PATH"], **stores.environment}
    printed = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    return float(printed.splitlines()[-1])


def _require_complete(stores: Stores, users: int) -> None:
    """Fails if the work was not done, because then its time means nothing."""
    with psycopg.connect(stores.database_url) as connection, Redis.from_url(stores.redis_url) as redis:
        row = connection.execute("SELECT count(*) FROM sync_jobs").fetchone()
        messages = redis.llen("daily")
    if row != (users,) or messages != users:
        raise AssertionError(f"{users} users, {row} jobs, {messages} messages")


class _FirstMessage:
    """Looks every 2 ms whether the queue has a message, until it has one."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._seen = 0.0
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        with Redis.from_url(self._stores.redis_url) as redis:
            while not redis.llen("daily"):
                time.sleep(0.002)
        self._seen = time.time()

    def ended(self) -> float:
        self._thread.join(10)
        return self._seen
