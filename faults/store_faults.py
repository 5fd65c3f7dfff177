"""Faults of whole servers, at a random time of a tick whose jobs are already being done."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis

from faults.faults import Fault, Kind
from faults.lane import Lane
from faults.proxy import Trap
from faults.servers import Servers
from faults.waiting import wait_until

SLOW_TICK = {"ENQUEUE_BATCH_SIZE": "5", "ENQUEUE_SLEEP_SECONDS": "0.1"}
"""Eight batches in about a second, so that a random moment falls into any part of it."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.5, 4.0
"""Of a stall and of a full Redis: on both sides of a tick's lease, which is 1 s."""
_SPARE_BYTES = 2048


@dataclass(frozen=True)
class Stores:
    """What one lane has for itself: servers, and the trap of the proxies before them."""

    servers: Servers
    trap: Trap


def play(lane: Lane, stores: Stores, fault: Fault) -> bool:
    """Breaks a server and heals it, while a tick and the lane's worker use it."""
    chance = lane.chance(fault)
    lane.prepare(fault)
    tick = lane.tick(fault, **SLOW_TICK)
    tick.wait(chance.uniform(0.1, 1.2))
    _break_and_heal(stores, fault.kind, chance)
    lane.finish(fault, tick)
    return True


def _break_and_heal(stores: Stores, kind: Kind, chance: random.Random) -> None:
    with Redis.from_url(stores.servers.redis_url) as redis:
        if kind is Kind.RESTART:
            stores.servers.restart_postgres()
        elif kind is Kind.FLUSH:
            redis.flushall()
        elif kind is Kind.STALL:
            stores.trap.stall()
            _wait(chance)
            stores.trap.flow()
        else:
            memory: dict[str, Any] = redis.info("memory")
            redis.config_set("maxmemory", memory["used_memory"] + _SPARE_BYTES)
            _wait(chance)
            redis.config_set("maxmemory", 0)


def _wait(chance: random.Random) -> None:
    moment = time.monotonic() + chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
    wait_until(lambda: time.monotonic() > moment, _LONGEST_SECONDS + 1, "the moment")
