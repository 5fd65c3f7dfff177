"""Faults of whole servers, at a random time of a tick whose jobs are already being done."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from redis import Redis

from faults.faults import Fault, Kind
from faults.lane import REPAIR_SECONDS, WORKER_LEASE_SECONDS, Lane
from faults.proxy import Trap
from faults.servers import Servers
from faults.waiting import pass_by
from worker_scheduler.publisher.broker import EPOCH_KEY

SLOW_TICK = {"ENQUEUE_BATCH_SIZE": "5", "ENQUEUE_SLEEP_SECONDS": "0.1"}
"""Eight batches in about a second, so that a random moment falls into any part of it."""
_PAUSES_SECONDS = 0.7
_DATA = ("daily", "unacked", EPOCH_KEY)
"""The queue, what workers have taken of it, and the marker of this life of the data."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.5, 4.0
"""Of a stall and of a full Redis: on both sides of a tick's lease, which is 1 s."""
STORE_REPAIR_SECONDS = 2.0 + max(WORKER_LEASE_SECONDS, 10.0) + REPAIR_SECONDS
"""A worker that a full Redis or a lost Postgres has ended is found as a killed one is; then reconcile."""
_SPARE_BYTES = 2048


@dataclass(frozen=True)
class Stores:
    """What one lane has for itself: servers, and the trap of the proxies before them."""

    servers: Servers
    trap: Trap


def play(lane: Lane, stores: Stores, fault: Fault) -> bool:
    """Breaks a server and heals it, while a tick and the lane's worker use it.

    Strikes if the tick was running or jobs were open at that moment, and somebody felt it.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    tick = lane.tick(fault, **SLOW_TICK)
    tick.wait(chance.uniform(0.1, lane.tick_seconds + _PAUSES_SECONDS))
    in_the_middle = tick.running or bool(lane.unfinished(fault))
    felt = _break_and_heal(stores, fault.kind, chance)
    lane.finish(fault, tick)
    return in_the_middle and felt


def _break_and_heal(stores: Stores, kind: Kind, chance: random.Random) -> bool:
    """Says whether a client was cut off, data were lost, a command was held, a write was refused."""
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
            pass_by(seconds)
            stores.trap.flow()
            return stores.trap.held > held
        refused = _refused_writes(redis)
        memory: dict[str, Any] = redis.info("memory")
        redis.config_set("maxmemory", memory["used_memory"] + _SPARE_BYTES)
        pass_by(seconds)
        redis.config_set("maxmemory", 0)
        return _refused_writes(redis) > refused


def _refused_writes(redis: Redis) -> int:
    """How many commands Redis has refused for want of memory since it started."""
    errors: dict[str, Any] = redis.info("errorstats")
    return int(errors.get("errorstat_OOM", {}).get("count", 0))
