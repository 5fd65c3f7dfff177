"""Faults of ticks and of reconcile passes: at a command, at a random time, and ten at once."""

from __future__ import annotations

import time

from faults.children import Child
from faults.faults import Fault, Kind
from faults.lane import Lane
from faults.proxy import Proxy, Trap, Way
from faults.waiting import pass_by, wait_until

STALL_SECONDS = 1.5
"""Longer than the lease of a tick (1 s), so that others take over from one that still lives."""
_PAUSING = {"ENQUEUE_SLEEP_SECONDS": "0.05"}
"""A pause between batches, so that a random moment may find a tick between them."""
_STARTED = 0.3
"""The share of a tick's time after which its process has started and asks its first question."""
_LATE_USERS = 4
_HERD = 10
_FIRST_BATCH_MARKED = b"UPDATE sync_batches b SET enqueued_at"
"""The command after which a tick dies that reconcile is to find: its first batch is out, its second
perhaps planned.
"""


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
    tick.wait(lane.chance(fault).uniform(_STARTED, 1) * lane.tick_seconds)
    tick.kill()
    lane.finish(fault, tick)
    return tick.was_killed


def reconciler_at_a_random_time(lane: Lane, fault: Fault) -> bool:
    """SIGKILL to the standing reconciler while it has something to do."""
    lane.prepare(fault, late=_LATE_USERS)
    half = half_a_tick(lane, fault)
    pass_by(lane.chance(fault).uniform(0.2, 2.5))
    busy = bool(lane.unfinished(fault))
    return lane.kill("reconciler") and half and busy


def herd(lane: Lane, fault: Fault) -> bool:
    """Ten ticks of a partition at once, two of which are killed.

    All wait at their first question until the tenth has come so far, so that they do meet. Without
    their lock they see each user twice, so that neither the lock nor their order gives each one job.
    """
    chance = lane.chance(fault)
    locked = "1" if fault.kind is Kind.HERD else "0"
    lane.prepare(fault, times=1 if fault.kind is Kind.HERD else 2)
    publisher = chance.choice(["redis-bulk", "group"])
    gate = Trap()
    gate.stall()
    with Proxy(lane.database_url, gate) as postgres:
        changes = {"SCHEDULER_LOCK_ENABLED": locked, "PUBLISHER": publisher, "DATABASE_URL": postgres.url}
        ticks = [lane.tick(fault, **changes) for _ in range(_HERD)]
        wait_until(lambda: gate.held >= _HERD, 60, "the first question of each tick")
        gate.flow()
        pass_by(chance.uniform(0, lane.tick_seconds / 2))
        alive = [tick for tick in ticks if tick.running]  # the lock soon refuses all but one
        victims = chance.sample(alive, min(2, len(alive)))
        for victim in victims:
            victim.kill()
        lane.finish(fault, *ticks)
    return sum(victim.was_killed for victim in victims) == 2


def half_a_tick(lane: Lane, fault: Fault) -> bool:
    """A tick that dies when its first batch is out and its second is not; says whether it did."""
    trap = Trap(_FIRST_BATCH_MARKED, Way.KILL_AFTER)
    with Proxy(lane.database_url, trap) as postgres, Proxy(lane.redis_url, trap) as redis:
        tick = lane.tick(fault, DATABASE_URL=postgres.url, REDIS_URL=redis.url)
        trap.aim(tick.kill)
        lane.finish(fault, tick)
    return tick.was_killed


def _play_trapped(lane: Lane, fault: Fault, trap: Trap) -> None:
    reconciles = fault.kind is Kind.RECONCILE
    lane.prepare(fault, late=_LATE_USERS if reconciles else 0)
    with Proxy(lane.database_url, trap) as postgres, Proxy(lane.redis_url, trap) as redis:
        through = {"DATABASE_URL": postgres.url, "REDIS_URL": redis.url}
        victim = _reconcile(lane, fault, through) if reconciles else _tick(lane, fault, through)
        trap.aim(victim.kill)
        lane.finish(fault, victim)


def _tick(lane: Lane, fault: Fault, through: dict[str, str]) -> Child:
    publisher = "group" if fault.kind is Kind.GROUP_TICK else lane.publisher
    return lane.tick(fault, PUBLISHER=publisher, **through)


def _reconcile(lane: Lane, fault: Fault, through: dict[str, str]) -> Child:
    """A pass that finds the half of a dead tick: its lock, its run, an unsent batch, jobs put off."""
    lane.kill("reconciler")  # this pass is to be the only one
    half_a_tick(lane, fault)
    wait_until(lambda: lane.leases_ran_out(fault), 10, "the end of the dead tick's leases")
    return lane.launch(["scheduler", "reconcile"], "reconcile", **through)
