"""Faults that hold up heartbeats for longer than a lease: the table is locked, or Postgres is away."""

from __future__ import annotations

import random
import time

import psycopg

from faults import handler
from faults.faults import USERS_PER_FAULT, Fault, Kind
from faults.lane import REPAIR_SECONDS, Lane
from faults.proxy import Proxy
from tests.support.waiting import wait_until

LEASE_SECONDS = 2
"""The lease of everything in the lane: who judges workers must know how often their hearts beat."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.25 * LEASE_SECONDS, 2.0 * LEASE_SECONDS
HANDLER_SECONDS = 2.5 * LEASE_SECONDS
"""Longer than a lock lasts: a job that ends under the lock waits for it, and ends right after it."""
LOCK_REPAIR_SECONDS = HANDLER_SECONDS + 0.5 * LEASE_SECONDS + REPAIR_SECONDS
"""The jobs run at once. A pass waits for half a lease before it judges a worker."""

_LOCKS = (
    "LOCK TABLE sync_jobs",
    "LOCK TABLE sync_jobs IN SHARE MODE",
    "SELECT FROM sync_jobs WHERE status = 'RUNNING' LIMIT 1 FOR UPDATE",
)
_EXPIRED = """
SELECT EXISTS (SELECT FROM sync_jobs WHERE status = 'RUNNING' AND leased_until < clock_timestamp())
"""


def hold(lane: Lane, postgres: Proxy, fault: Fault) -> bool:
    """Locks the table, or the row of a running job, while the lane's worker runs jobs; then releases it. Or
    takes away Postgres, whose proxy the whole lane uses, for as long.

    Returns whether the lease of a running job ran out during that time.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    begun_before = _begun(lane)
    lane.finish(fault, lane.tick(fault))
    wanted = begun_before + chance.randint(1, USERS_PER_FAULT)
    wait_until(lambda: _begun(lane) >= wanted, 60, "a running job", poll_seconds=0.01)
    if fault.kind is Kind.HELD:
        return _lock_for_a_while(lane.direct_url, chance)
    postgres.go_away()
    time.sleep(chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS))  # the fault is this time
    with psycopg.connect(lane.direct_url) as connection:
        ran_out = _ran_out(connection)
    postgres.come_back()
    return ran_out


def _lock_for_a_while(database_url: str, chance: random.Random) -> bool:
    with psycopg.connect(database_url) as holder:
        holder.execute(chance.choice(_LOCKS).encode())
        time.sleep(chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS))  # the fault is this time
        return _ran_out(holder)


def _ran_out(connection: psycopg.Connection) -> bool:
    row = connection.execute(_EXPIRED).fetchone()
    assert row is not None
    return bool(row[0])


def _begun(lane: Lane) -> int:
    return sum(entry.what == "began" for entry in handler.read(lane.record))
