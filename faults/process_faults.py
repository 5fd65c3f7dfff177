"""Faults of permanent processes: workers and Beat, killed at random times."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from faults import handler
from faults.children import Child
from faults.faults import USERS_PER_FAULT, Fault, Kind
from faults.lane import REPAIR_SECONDS, Lane
from faults.step_faults import kill_tick_halfway
from tests.support.waiting import Overdue, wait_until

HANDLER_SECONDS = 0.1
WORKER_REPAIR_SECONDS = 2.0 + 10.0 + USERS_PER_FAULT * HANDLER_SECONDS + REPAIR_SECONDS
"""VISIBILITY_TIMEOUT_SECONDS, then at most 10 s until kombu looks for a dead worker's messages, during
which the job's lease of 3 s expires; then all jobs, because a lost message is found only when the queue is
empty; then reconcile.
"""
_PASS_SECONDS = 1.0
BEAT_REPAIR_SECONDS = 120.0 + 30.0 + REPAIR_SECONDS + USERS_PER_FAULT * (HANDLER_SECONDS + _PASS_SECONDS)
"""The dead Beat's lock of 120 s, for which the next Beat asks every 30 s; then what that Beat triggers, and
all jobs, between any two of which the same worker may run a pass of reconcile.
"""
_LOCK = "Acquired lock"


def kill_worker(lane: Lane, fault: Fault) -> bool:
    """Kills the lane's worker while it runs a job, or while messages are just coming in.

    Returns whether it ran a job, or jobs were left to plan, publish or run, at that moment.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    victim = lane.current("worker").name
    if fault.kind is Kind.BUSY_WORKER:
        done_before = _begun(lane.record)
        lane.tick(fault)
        wanted = done_before + chance.randint(1, USERS_PER_FAULT - 5)
        wait_until(lambda: _begun(lane.record) >= wanted, 60, "a running job", poll_seconds=0.01)
        time.sleep(chance.uniform(0, HANDLER_SECONDS))  # a random moment of the job
        with suppress(Overdue):  # all jobs are done: the fault comes too late
            wait_until(lambda: _has_job(lane.record, victim), 2, "the next job", poll_seconds=0.01)
    else:
        lane.tick(fault)
        time.sleep(chance.uniform(0, 0.3))  # while messages come in
    waited = bool(lane.unfinished(fault))
    killed = lane.kill("worker")
    return killed and (_has_job(lane.record, victim) if fault.kind is Kind.BUSY_WORKER else waited)


def kill_beat(lane: Lane, fault: Fault) -> bool:
    """Kills the Beat that holds the lock, while another Beat waits for it.

    Then a tick dies halfway, which the worker's watchdog repairs while no Beat triggers anything.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    beats = {name: _beat(lane, name) for name in ("beat-1", "beat-2")}

    def lock_holder() -> str | None:
        return next((name for name in beats if _LOCK in _log(lane, name)), None)

    holder = wait_until(lock_holder, 60, "a Beat with the lock")
    time.sleep(chance.uniform(0, 10))  # a random moment of its loop
    assert holder is not None
    beats[holder].kill()
    tick_was_killed = kill_tick_halfway(lane, fault)
    (other,) = beats.keys() - {holder}
    wait_until(lambda: _LOCK in _log(lane, other), BEAT_REPAIR_SECONDS, "the next Beat with the lock")
    return beats[holder].wait(10) and beats[holder].was_killed and tick_was_killed


def _beat(lane: Lane, name: str) -> Child:
    arguments = ["celery", "-A", "worker_scheduler", "beat", "--pidfile", "", "--loglevel", "INFO"]
    return lane.launch(arguments, name)


def _log(lane: Lane, name: str) -> str:
    log = lane.folder / f"{name}.log"
    return log.read_text(errors="replace") if log.exists() else ""


def _has_job(record: Path, process: str) -> bool:
    """Whether the last entry of the process is the beginning of a job."""
    noted = [entry.what for entry in handler.read(record) if entry.process == process]
    return noted[-1:] == ["began"]


def _begun(record: Path) -> int:
    return sum(entry.what == "began" for entry in handler.read(record))
