"""Faults of whole servers, at a random time of a tick whose first jobs are already running."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis

from faults.faults import Fault, Kind
from faults.lane import REPAIR_SECONDS, WORKER_LEASE_SECONDS, Lane
from faults.proxy import Trap
from faults.servers import Servers
from worker_scheduler.publisher.broker import EPOCH_KEY

SLOW_TICK = {"ENQUEUE_BATCH_SIZE": "5", "ENQUEUE_SLEEP_SECONDS": "0.1"}
"""Eight batches in about a second, so that a random moment may fall anywhere in the tick."""
_PAUSES_SECONDS = 0.7
_DATA = ("daily", "unacked", EPOCH_KEY)
"""The queue, the messages that workers have not acknowledged, and the broker epoch."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.5, 4.0
"""How long a stall or a full Redis lasts: shorter and longer than a tick's lease, which is 1 s."""
STORE_REPAIR_SECONDS = 2.0 + max(WORKER_LEASE_SECONDS + 0.5, 10.0) + REPAIR_SECONDS
"""A full Redis or a lost Postgres may end the worker. Its job is then found as a killed worker's job is,
by its lease and a second look half a lease (of the reconciler) later, or the visibility timeout; then
reconcile.
"""
_SPARE_BYTES = 2048


@dataclass(frozen=True)
class Stores:
    """The servers that one lane uses alone, and the trap of the proxies in front of them."""

    servers: Servers
    trap: Trap


def play(lane: Lane, stores: Stores, fault: Fault) -> bool:
    """Breaks a server and repairs it, while a tick and the lane's worker use it.

    Returns whether the tick was running or jobs were open at that moment, and a client was affected.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    tick = lane.tick(fault, **SLOW_TICK)
    tick.wait(chance.uniform(0.1, lane.tick_seconds + _PAUSES_SECONDS))
    in_the_middle = tick.running or bool(lane.unfinished(fault))
    affected = _break_and_repair(stores, fault.kind, chance)
    lane.finish(fault, tick)
    return in_the_middle and affected


def _break_and_repair(stores: Stores, kind: Kind, chance: random.Random) -> bool:
    """Returns whether a client was cut off, data was lost, a command was held or a write was refused."""
    seconds = chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
    with Redis.from_url(stores.servers.redis_url) as redis:
        if kind is Kind.RESTART:
            return stores.servers.restart_postgres() > 0
        if kind is Kind.FLUSH:
            lost = int(redis.exists(*_DATA))
            redis.flushall()
            return lost > 0
        if kind is Kind.STALL:
            held = stores.trap.held
            stores.trap.stall()
            time.sleep(seconds)  # the fault is this time
            stores.trap.flow()
            return stores.trap.held > held
        refused = _refused_writes(redis)
        memory: dict[str, Any] = redis.info("memory")
        redis.config_set("maxmemory", memory["used_memory"] + _SPARE_BYTES)
        time.sleep(seconds)  # the fault is this time
        redis.config_set("maxmemory", 0)
        return _refused_writes(redis) > refused


def _refused_writes(redis: Redis) -> int:
    """Counts the commands that Redis has refused for lack of memory since it started."""
    errors: dict[str, Any] = redis.info("errorstats")
    return int(errors.get("errorstat_OOM", {}).get("count", 0))
