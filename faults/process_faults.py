"""Faults of what stands for days: workers and Beat, killed at random times."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from faults import handler
from faults.children import Child
from faults.faults import USERS_A_FAULT, Fault, Kind
from faults.lane import REPAIR_SECONDS, Lane
from faults.step_faults import half_a_tick
from faults.waiting import Overdue, pass_by, wait_until

HANDLER_SECONDS = 0.1
WORKER_REPAIR_SECONDS = 2.0 + 10.0 + USERS_A_FAULT * HANDLER_SECONDS + REPAIR_SECONDS
"""VISIBILITY_TIMEOUT_SECONDS, and Redis' look for a dead worker's messages each 10 s, while its lease of
3 s runs out; all jobs, since a message that is nowhere is found when the queue has run dry; then
reconcile.
"""
BEAT_REPAIR_SECONDS = 120.0 + 30.0 + REPAIR_SECONDS
"""A lock of 120 s, asked for each 30 s; then what the next Beat rings."""
_LOCK = "Acquired lock"


def kill_worker(lane: Lane, fault: Fault) -> bool:
    """SIGKILL to the lane's worker, over a job or while messages are just coming in.

    Strikes if it had a job in hand, or messages were still to come or to be worked off.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    victim = lane.standing("worker").name
    if fault.kind is Kind.BUSY_WORKER:
        done_before = _begun(lane.record)
        lane.tick(fault)
        wanted = done_before + chance.randint(1, USERS_A_FAULT - 5)
        wait_until(lambda: _begun(lane.record) >= wanted, 60, "a job that runs", poll_seconds=0.01)
        pass_by(chance.uniform(0, HANDLER_SECONDS))
        with suppress(Overdue):  # then the jobs are done: too late
            wait_until(lambda: _has_job(lane.record, victim), 2, "the next job", poll_seconds=0.01)
    else:
        lane.tick(fault)
        pass_by(chance.uniform(0, 0.3))
    waited = bool(lane.unfinished(fault))
    killed = lane.kill("worker")
    return killed and (_has_job(lane.record, victim) if fault.kind is Kind.BUSY_WORKER else waited)


def kill_beat(lane: Lane, fault: Fault) -> bool:
    """SIGKILL to the Beat that rings, while another one waits for its lock.

    Then a tick dies, which nobody can put right but the reconcile that the next Beat rings.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    beats = {name: _beat(lane, name) for name in ("beat-1", "beat-2")}

    def ringing() -> str | None:
        return next((name for name in beats if _LOCK in _log(lane, name)), None)

    holder = wait_until(ringing, 60, "a Beat with the lock")
    pass_by(chance.uniform(0, 10))
    assert holder is not None
    beats[holder].kill()
    half = half_a_tick(lane, fault)
    return beats[holder].wait(10) and beats[holder].was_killed and half


def _beat(lane: Lane, name: str) -> Child:
    arguments = ["celery", "-A", "worker_scheduler", "beat", "--pidfile", "", "--loglevel", "INFO"]
    return lane.launch(arguments, name)


def _log(lane: Lane, name: str) -> str:
    log = lane.folder / f"{name}.log"
    return log.read_text(errors="replace") if log.exists() else ""


def _has_job(record: Path, process: str) -> bool:
    """Whether the last that the process has noted is the beginning of a job."""
    noted = [entry.what for entry in handler.read(record) if entry.process == process]
    return noted[-1:] == ["began"]


def _begun(record: Path) -> int:
    return sum(entry.what == "began" for entry in handler.read(record))
