"""Faults of a host whose clock is wrong: a tick, a reconciler or a worker has it, and the servers do not.

The lane has a daily calendar whose first day is not due yet, so a clock that is ahead makes days due early.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import product

import psycopg

from clocks import faketime
from faults import handler
from faults.children import Child
from faults.faults import USERS_PER_FAULT, Fault, Kind
from faults.lane import REPAIR_SECONDS, WORKER_LEASE_SECONDS, Broken, Lane
from faults.store_faults import SLOW_TICK
from tests.support.waiting import Overdue, wait_until

CONCURRENCY = 4
HANDLER_SECONDS = 0.3
CALENDAR = {"DAILY_TICK_CRON": "0 0 * * *", "DAILY_CATCH_UP": "all"}
REPAIR_WITH_JOBS_SECONDS = 2 * USERS_PER_FAULT * HANDLER_SECONDS / CONCURRENCY + REPAIR_SECONDS
_END_SECONDS = 60.0
_LONGEST_LEASE = timedelta(seconds=WORKER_LEASE_SECONDS + 1)
"""The longest lease in the lane, and a second for a statement that had to wait."""
MISSING = "libfaketime is not installed; scripts/install-faketime.sh"
_LOOK_SECONDS = 0.05
_NAMED = "this host's clock differs from that of Postgres"
_READY = "ready."


class _Role(StrEnum):
    TICK = "tick"
    RECONCILER = "reconciler"
    WORKER = "worker"


_AHEAD = (timedelta(days=30), timedelta(minutes=5), timedelta(minutes=-5), timedelta(days=-30))
_CASES = tuple(product(_Role, _AHEAD))
"""Each run plays all of them: as many as it has faults of this kind."""

_LONGEST = """
SELECT max(leased_until) - clock_timestamp() FROM (
    SELECT leased_until FROM sync_jobs UNION ALL SELECT leased_until FROM sync_runs
    UNION ALL SELECT claimed_until FROM sync_batches UNION ALL SELECT leased_until FROM sync_locks
) leases
"""
_FUTURE_DAYS = """
SELECT partition_key FROM sync_runs
WHERE partition_key > 'daily:' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD')
"""
_TIMES = """
SELECT least(min(r.created_at), min(r.finished_at), min(j.created_at), min(j.started_at),
             min(j.completed_at)),
       greatest(max(r.finished_at), max(j.created_at), max(j.started_at), max(j.completed_at))
FROM sync_runs r JOIN sync_jobs j USING (run_id) WHERE r.partition_key = %s
"""


@dataclass
class _Host:
    """The host with the wrong clock. longest: the longest lease that was seen while it was there."""

    role: _Role
    ahead: timedelta
    variables: dict[str, str]
    log: str
    child: Child | None = None
    longest: timedelta = timedelta(0)

    def __str__(self) -> str:
        return f"a {self.role} that is {self.ahead.total_seconds():+.0f} s ahead"


def unplayable() -> frozenset[Kind]:
    """These faults, if the library that gives a process a wrong clock is not installed."""
    return frozenset() if faketime.library() else frozenset({Kind.WRONG_CLOCK})


def play(lane: Lane, fault: Fault) -> bool:
    """Plays a run with one process on a host whose clock is wrong, until the run is finished.

    Returns whether that process did its part, and named its host. Raises Broken.
    """
    role, ahead = _CASES[len(lane.played) % len(_CASES)]
    host = _Host(role, ahead, _wrong_by(ahead, lane), log=f"{role}-{fault.number}")
    began_at = _time(lane)
    lane.prepare(fault)
    try:
        _start(lane, host)
        _await_end(lane, fault, host, _tick(lane, fault, host))
    finally:
        _end(host)
    _check_times(lane, fault, host, began_at)
    return _struck(lane, host)


def _wrong_by(ahead: timedelta, lane: Lane) -> dict[str, str]:
    variables = faketime.wrong_by(ahead)
    variables["PYTHONPATH"] += os.pathsep + lane.environment["PYTHONPATH"]
    return variables


def _start(lane: Lane, host: _Host) -> None:
    if host.role is _Role.RECONCILER:
        lane.kill("reconciler")  # the only passes are those of this host
        host.child = lane.reconciler(host.log, **host.variables)
        wait_until(lambda: _NAMED in _log(lane, host), _END_SECONDS, "the first pass")
    elif host.role is _Role.WORKER:
        host.child = lane.worker(host.log, **host.variables)
        wait_until(lambda: _READY in _log(lane, host), _END_SECONDS, "the second worker")


def _tick(lane: Lane, fault: Fault, host: _Host) -> Child:
    if host.role is not _Role.TICK:
        return lane.tick(fault, **SLOW_TICK)
    host.child = lane.tick(fault, host.log, **SLOW_TICK, **host.variables)
    return host.child


def _await_end(lane: Lane, fault: Fault, host: _Host, tick: Child) -> None:
    """Waits for the ends of the tick and of the run, and looks at the leases all the time."""

    def look() -> None:
        host.longest = max(host.longest, _longest_lease(lane))

    def finished() -> bool:
        look()
        return not lane.unfinished(fault)

    while tick.running:
        look()
        tick.wait(_LOOK_SECONDS)
    if tick.exit_status != 0:
        raise Broken(f"{fault}: {host}: the tick ended with {tick.exit_status}")
    try:
        wait_until(finished, REPAIR_WITH_JOBS_SECONDS, "the end of the run", poll_seconds=_LOOK_SECONDS)
    except Overdue:
        raise Broken(f"{fault}: {host}: {'; '.join(lane.unfinished(fault))}") from None


def _end(host: _Host) -> None:
    child = host.child
    if child is None:
        return
    child.terminate()
    if not child.wait(_END_SECONDS):
        child.kill()
        child.wait(_END_SECONDS)
    assert child.pid is not None
    faketime.clean_up(child.pid)


def _check_times(lane: Lane, fault: Fault, host: _Host, began_at: datetime) -> None:
    """Raises Broken for a future day, a lease that is too long, or a time that the servers never had."""
    found = []
    if host.longest > _LONGEST_LEASE:
        found.append(f"a lease of {host.longest}")
    with psycopg.connect(lane.direct_url, autocommit=True) as connection:
        found += [f"the run {row[0]} of a future day" for row in connection.execute(_FUTURE_DAYS)]
        times = connection.execute(_TIMES, [fault.partition_key]).fetchone()
    assert times is not None
    margin = timedelta(seconds=1)
    if not began_at - margin <= times[0] <= times[1] <= _time(lane) + margin:
        found.append(f"times from {times[0]} to {times[1]}")
    if found:
        raise Broken(f"{fault}: {host}: {'; '.join(found)}")


def _struck(lane: Lane, host: _Host) -> bool:
    assert host.child is not None
    named = _NAMED in _log(lane, host)
    if host.role is not _Role.WORKER:
        return named
    return named and any(
        entry.process == host.child.name and entry.what == "ended" for entry in handler.read(lane.record)
    )


def _log(lane: Lane, host: _Host) -> str:
    log = lane.folder / f"{host.log}.log"
    return log.read_text(errors="replace") if log.exists() else ""


def _time(lane: Lane) -> datetime:
    with psycopg.connect(lane.direct_url, autocommit=True) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    time: datetime = row[0]
    return time


def _longest_lease(lane: Lane) -> timedelta:
    with psycopg.connect(lane.direct_url, autocommit=True) as connection:
        row = connection.execute(_LONGEST).fetchone()
    assert row is not None
    return row[0] or timedelta(0)
