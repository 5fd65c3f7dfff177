"""Faults of ticks and reconcile passes: at a command, at a random time, and ten ticks at once."""

from __future__ import annotations

import time

from faults.children import Child
from faults.faults import Fault, Kind
from faults.lane import Broken, Lane
from faults.proxy import Proxy, Trap, Way
from tests.support.waiting import wait_until

STALL_SECONDS = 1.5
"""Longer than the lease of a tick (1 s), so that other processes take over from a tick that still lives."""
_PAUSING = {"ENQUEUE_SLEEP_SECONDS": "0.05"}
"""A pause between batches, so that a random moment may fall between two of them."""
_STARTED = 0.3
"""The share of a tick's time after which its process has started and sends its first query."""
_LATE_USERS = 4
_HERD = 10
_FIRST_BATCH_MARKED = b"sync_batches b SET enqueued_at"
"""The command after which `kill_tick_halfway` kills: the first batch is published, the second perhaps
planned.
"""


def count_commands(lane: Lane, fault: Fault) -> int:
    """Counts the commands of an undisturbed tick or pass."""
    trap = Trap()
    _play_trapped(lane, fault, trap)
    return trap.commands


def at_a_command(lane: Lane, fault: Fault) -> bool:
    """Kills, stalls or cuts at the fault's step; returns whether the victim got that far."""
    trap = Trap(fault.step, fault.way or Way.KILL_BEFORE, STALL_SECONDS)
    _play_trapped(lane, fault, trap)
    return trap.sprung.is_set()


def measure_tick(lane: Lane, fault: Fault) -> float:
    """Returns how many seconds an undisturbed tick takes, from the start of its process to its end."""
    lane.prepare(fault)
    started = time.monotonic()
    lane.finish(fault, lane.tick(fault, **_PAUSING))
    return time.monotonic() - started


def tick_at_a_random_time(lane: Lane, fault: Fault) -> bool:
    """Kills a tick at a random moment of the time that a tick takes."""
    lane.prepare(fault)
    tick = lane.tick(fault, **_PAUSING)
    tick.wait(lane.chance(fault).uniform(_STARTED, 1) * lane.tick_seconds)
    tick.kill()
    lane.finish(fault, tick)
    return tick.was_killed


def reconciler_at_a_random_time(lane: Lane, fault: Fault) -> bool:
    """Kills the lane's reconciler while it has something to do."""
    lane.prepare(fault, late=_LATE_USERS)
    tick_was_killed = kill_tick_halfway(lane, fault)
    time.sleep(lane.chance(fault).uniform(0.2, 2.5))  # a random moment of a pass
    busy = bool(lane.unfinished(fault))
    return lane.kill("reconciler") and tick_was_killed and busy


def herd(lane: Lane, fault: Fault) -> bool:
    """Starts ten ticks of a partition at once and kills two of them.

    All are held at their first query until the tenth has sent its own, so that they really compete. Those
    without locks see each user twice: neither the lock nor the order of users can then ensure that each
    user gets one job.
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
        wait_until(lambda: gate.held >= _HERD, 60, "the first query of each tick")
        gate.flow()
        time.sleep(chance.uniform(0, lane.tick_seconds / 2))  # a random moment of the ticks
        alive = [tick for tick in ticks if tick.running]  # all but the holder of the lock end soon
        victims = chance.sample(alive, min(2, len(alive)))
        for victim in victims:
            victim.kill()
        lane.finish(fault, *ticks)
    return sum(victim.was_killed for victim in victims) == 2


def kill_tick_halfway(lane: Lane, fault: Fault) -> bool:
    """Kills a tick after it published its first batch, before its second; returns whether it was killed."""
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
    """Starts a pass that finds a tick killed halfway: its lock, its run, an unsent batch, jobs to retry."""
    lane.kill("reconciler")  # no other pass may do the work first
    if not kill_tick_halfway(lane, fault):
        raise Broken(f"{fault}: the tick before the pass was not killed")
    wait_until(lambda: lane.leases_ran_out(fault), 10, "the end of the dead tick's leases")
    return lane.launch(["scheduler", "reconcile"], "reconcile", **through)
