"""Faults of what stands for days: workers and Beat, killed at random times."""

from __future__ import annotations

import time
from pathlib import Path

from faults import handler
from faults.children import Child
from faults.faults import USERS_A_FAULT, Fault, Kind
from faults.lane import Lane
from faults.step_faults import half_a_tick
from faults.waiting import wait_until

HANDLER_SECONDS = 0.05
WORKER_REPAIR_SECONDS = 90.0
"""Documented: a lease of 3 s; or VISIBILITY_TIMEOUT_SECONDS (2 s) and the look of each 10 s; then
reconcile, twice. The rest is for busy cores."""
BEAT_REPAIR_SECONDS = 200.0
"""Documented: a lock of 120 s, asked for each 30 s; then the first ring."""
_LOCK = "Acquired lock"


def kill_worker(lane: Lane, fault: Fault) -> bool:
    """SIGKILL to the lane's worker, over a job or while messages are just coming in."""
    chance = lane.chance(fault)
    lane.prepare(fault)
    if fault.kind is Kind.BUSY_WORKER:
        done_before = _begun(lane.record)
        lane.tick(fault)
        wanted = chance.randint(1, USERS_A_FAULT - 5)
        wait_until(lambda: _begun(lane.record) >= done_before + wanted, 60, "a job that runs")
        _pass_by(chance.uniform(0, HANDLER_SECONDS))
    else:
        lane.tick(fault)
        _pass_by(chance.uniform(0, 0.3))
    lane.kill("worker")
    return True


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
    _pass_by(chance.uniform(0, 10))
    assert holder is not None
    beats[holder].kill()
    half_a_tick(lane, fault)
    return True


def _beat(lane: Lane, name: str) -> Child:
    arguments = ["celery", "-A", "worker_scheduler", "beat", "--pidfile", "", "--loglevel", "INFO"]
    return lane.launch(arguments, name)


def _log(lane: Lane, name: str) -> str:
    log = lane.folder / f"{name}.log"
    return log.read_text(errors="replace") if log.exists() else ""


def _begun(record: Path) -> int:
    return sum(entry.what == "began" for entry in handler.read(record))


def _pass_by(seconds: float) -> None:
    moment = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > moment, seconds + 1, "the moment", poll_seconds=0.005)
