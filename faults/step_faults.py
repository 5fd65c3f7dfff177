"""Faults of ticks and of reconcile passes: at a command, at a random time, and ten at once."""

from __future__ import annotations

import time

from faults.children import Child
from faults.faults import Fault, Kind
from faults.lane import Lane
from faults.proxy import Proxy, Trap, Way
from faults.waiting import wait_until

STALL_SECONDS = 1.5
"""Longer than the lease of a tick (1 s), so that others take over from one that still lives."""
_PAUSING = {"ENQUEUE_SLEEP_SECONDS": "0.05"}
"""A pause between batches, so that a random moment may find a tick between them."""
_LATE_USERS = 4
_HERD = 10
_HALF_A_TICK = 60
"""The command before which a tick dies that reconcile is to find: its first batch is out by then."""


def count_commands(lane: Lane, fault: Fault) -> int:
    """How many commands an undisturbed tick or pass sends."""
    trap = Trap()
    _play_trapped(lane, fault, trap)
    return trap.commands


def at_a_command(lane: Lane, fault: Fault) -> bool:
    """Stops, stalls or cuts at the fault's step; says whether the victim came so far."""
    trap = Trap(fault.step, fault.way or Way.KILL_BEFORE, STALL_SECONDS)
    _play_trapped(lane, fault, trap)
    return trap.sprung.is_set()


def measure_tick(lane: Lane, fault: Fault) -> float:
    """How long an undisturbed tick takes, from the start of its process to the end."""
    lane.prepare(fault)
    started = time.monotonic()
    lane.finish(fault, lane.tick(fault, **_PAUSING))
    return time.monotonic() - started


def tick_at_a_random_time(lane: Lane, fault: Fault) -> bool:
    """SIGKILL to a tick within the time that one takes."""
    lane.prepare(fault)
    tick = lane.tick(fault, **_PAUSING)
    tick.wait(lane.chance(fault).uniform(0, lane.tick_seconds))
    tick.kill()
    lane.finish(fault, tick)
    return tick.was_killed


def reconciler_at_a_random_time(lane: Lane, fault: Fault) -> bool:
    """SIGKILL to the standing reconciler while it has something to do."""
    chance = lane.chance(fault)
    lane.prepare(fault, late=_LATE_USERS)
    tick = lane.tick(fault, ENQUEUE_SLEEP_SECONDS="0.05")
    tick.wait(chance.uniform(0.1, 0.6))
    tick.kill()
    lane.finish(fault, tick)
    moment = time.monotonic() + chance.uniform(0.2, 2.5)
    wait_until(lambda: time.monotonic() > moment, 5, "the moment")
    lane.kill("reconciler")
    return True


def herd(lane: Lane, fault: Fault) -> bool:
    """Ten ticks of a partition at once, two of which are killed.

    Without their lock they see each user twice, so that it is not the lock nor their order that gives
    each one job.
    """
    chance = lane.chance(fault)
    locked = "1" if fault.kind is Kind.HERD else "0"
    lane.prepare(fault, times=1 if fault.kind is Kind.HERD else 2)
    publisher = chance.choice(["redis-bulk", "group"])
    ticks = [lane.tick(fault, SCHEDULER_LOCK_ENABLED=locked, PUBLISHER=publisher) for _ in range(_HERD)]
    for victim in chance.sample(ticks, 2):
        victim.wait(chance.uniform(0.0, 0.3))
        victim.kill()
    lane.finish(fault, *ticks)
    return True


def half_a_tick(lane: Lane, fault: Fault) -> None:
    """A tick that dies when its first batch is out and its second is not."""
    trap = Trap(_HALF_A_TICK, Way.KILL_BEFORE)
    with Proxy(lane.database_url, trap) as postgres, Proxy(lane.redis_url, trap) as redis:
        tick = lane.tick(fault, DATABASE_URL=postgres.url, REDIS_URL=redis.url)
        trap.aim(tick.kill)
        lane.finish(fault, tick)


def _play_trapped(lane: Lane, fault: Fault, trap: Trap) -> None:
    reconciles = fault.kind is Kind.RECONCILE
    lane.prepare(fault, late=_LATE_USERS if reconciles else 0)
    with Proxy(lane.database_url, trap) as postgres, Proxy(lane.redis_url, trap) as redis:
        through = {"DATABASE_URL": postgres.url, "REDIS_URL": redis.url}
        victim = _reconcile(lane, fault, through) if reconciles else _tick(lane, fault, through)
        trap.aim(victim.kill)
        lane.finish(fault, victim)


def _tick(lane: Lane, fault: Fault, through: dict[str, str]) -> Child:
    publisher = "group" if fault.kind is Kind.GROUP_TICK else "redis-bulk"
    return lane.tick(fault, PUBLISHER=publisher, **through)


def _reconcile(lane: Lane, fault: Fault, through: dict[str, str]) -> Child:
    """A pass that finds the half of a dead tick: its lock, its run, an unsent batch, jobs put off."""
    lane.kill("reconciler")  # this pass is to be the only one
    half_a_tick(lane, fault)
    wait_until(lambda: lane.leases_ran_out(fault), 10, "the end of the dead tick's leases")
    return lane.launch(["scheduler", "reconcile"], "reconcile", **through)
