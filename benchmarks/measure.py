"""Runs the subjects side by side and gathers what they say. Each in a process and a database of its own."""

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

from benchmarks.sites import Site, Sites


@dataclass(frozen=True, order=True)
class Subject:
    """What is measured, and with how many jobs a batch."""

    name: str
    batch_size: int


@dataclass
class Measured:
    """One list an aspect, one entry a repetition."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    first_message_ms: list[float] = field(default_factory=list)
    again_seconds: list[float] = field(default_factory=list)
    status_ms: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """The one figure that ratios are made of."""
        return statistics.median(self.seconds)


def side_by_side(
    sites: Sites, users: int, subjects: Sequence[Subject], repetitions: int, say: Callable[[str], None]
) -> dict[Subject, Measured]:
    """All subjects in turns, so that a slow minute of the machine is everybody's."""
    measured = {subject: Measured() for subject in subjects}
    for _ in range(repetitions):
        for subject in subjects:
            with sites.fresh() as site:
                _once(site, users, subject, measured[subject])
            last = measured[subject].seconds[-1]
            say(f"{users:>9,} users  {subject.name} {subject.batch_size}: {last:.3f} s")
    return measured


def _once(site: Site, users: int, subject: Subject, into: Measured) -> None:
    watch = _FirstMessage(site)
    said = child(site, subject)
    first = watch.ended()
    _require_complete(site, users)
    into.seconds.append(said["seconds"])
    into.peak_mib.append(said["peak_kib"] / 1024)
    into.first_message_ms.append((first - said["began"]) * 1000)
    if subject.name == "tick":
        into.again_seconds.append(child(site, subject)["seconds"])
        _require_complete(site, users)
        into.status_ms.append(_status_seconds(site) * 1000)


def child(site: Site, subject: Subject) -> dict[str, float]:
    """Runs a subject in a process of its own; what it says."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.subjects", subject.name, str(subject.batch_size)],
        env={"PATH": os.environ["PATH"], **site.environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return said


def _status_seconds(site: Site) -> float:
    """`scheduler status` of the partition, without the start of a process."""
    program = (
        "import time; from worker_scheduler.cli import run;"
        " from benchmarks.sites import KEY; started = time.perf_counter(); run(['status', KEY]);"
        " print(time.perf_counter() - started)"
    )
    environment = {"PATH": os.environ["PATH"], **site.environment}
    printed = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    return float(printed.splitlines()[-1])


def _require_complete(site: Site, users: int) -> None:
    """A benchmark of work that was not done would be a lie."""
    with psycopg.connect(site.database_url) as connection, Redis.from_url(site.redis_url) as redis:
        row = connection.execute("SELECT count(*) FROM sync_jobs").fetchone()
        messages = redis.llen("daily")
    if row != (users,) or messages != users:
        raise AssertionError(f"{users} users, {row} jobs, {messages} messages")


class _FirstMessage:
    """Looks each 2 ms whether the queue has something, until it has."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._seen = 0.0
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        with Redis.from_url(self._site.redis_url) as redis:
            while not redis.llen("daily"):
                time.sleep(0.002)
        self._seen = time.time()

    def ended(self) -> float:
        self._thread.join(10)
        return self._seen
