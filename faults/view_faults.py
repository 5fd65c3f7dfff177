"""A run that cannot be planned, because its view of users raises an error, in front of healthy runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import psycopg
from redis import Redis

from faults import databases, invariants
from faults.faults import USERS_PER_FAULT, Fault
from faults.lane import REPAIR_SECONDS, SLACK_SECONDS, Broken, Lane
from tests.support.waiting import Overdue, wait_until

HANDLER_SECONDS = 0.02
HEALTHY_RUNS = 2
HEALTHY_SECONDS = HEALTHY_RUNS * USERS_PER_FAULT * HANDLER_SECONDS + REPAIR_SECONDS
"""All their jobs were lost with Redis' data; the bound is the one of any other fault."""
_STATE = "SELECT state, failures, retry_after - clock_timestamp() FROM sync_runs WHERE partition_key = %s"
_PASS_SECONDS = 3.0
"""An interval, and a pass that looks twice for lost messages."""


def play(lane: Lane, fault: Fault, healthy_run: Callable[[], Fault]) -> bool:
    """Lets the fault's run fail, loses the messages of later runs, and waits until those are finished. Then
    repairs the view, and waits until the run is planned.

    healthy_run: returns a partition for a healthy run. Returns whether reconcile tried to plan the failing
    run, and messages were lost. Raises Broken.
    """
    for process in ("worker", "reconciler"):
        lane.kill(process)
    lane.prepare(fault)
    databases.break_participants(lane.direct_url, fault.first_user, USERS_PER_FAULT)
    lane.finish(fault, lane.tick(fault))
    healthy = [healthy_run() for _ in range(HEALTHY_RUNS)]
    for one in healthy:
        lane.prepare(one)
        lane.finish(one, lane.tick(one))
    databases.break_participants(lane.direct_url, fault.first_user, USERS_PER_FAULT)
    with Redis.from_url(lane.redis_url) as redis:
        lost = int(redis.llen("daily"))
        redis.flushdb()
    _await_healthy(lane, fault, healthy)
    databases.show_participants(lane.direct_url, fault.first_user, USERS_PER_FAULT, late=0, times=1)
    return _await_planned(lane, fault) and lost == HEALTHY_RUNS * USERS_PER_FAULT


def _await_healthy(lane: Lane, fault: Fault, healthy: list[Fault]) -> None:
    deadline = time.monotonic() + HEALTHY_SECONDS
    for one in healthy:
        lane.await_repair(one, deadline - time.monotonic())
    state, failures, _ = _state(lane, fault)
    if state != "PLANNING" or not failures:
        raise Broken(f"{fault}: its run cannot be planned, but is {state} after {failures} failures")


def _await_planned(lane: Lane, fault: Fault) -> bool:
    """Waits until the run is planned, within the time for which it is left alone after its failures."""
    _, failures, left_alone = _state(lane, fault)
    seconds = (left_alone or timedelta(0)).total_seconds() + _PASS_SECONDS + SLACK_SECONDS

    def planned() -> bool:
        lane.supervise()
        return _state(lane, fault)[0] != "PLANNING"

    try:
        wait_until(planned, seconds, "the plan", poll_seconds=0.1)
    except Overdue:
        raise Broken(f"{fault}: not planned {seconds:.0f} s after the view was repaired") from None
    return failures > 0


def _state(lane: Lane, fault: Fault) -> tuple[str, int, timedelta | None]:
    with psycopg.connect(lane.direct_url, autocommit=True) as connection:
        row = connection.execute(_STATE, [fault.partition_key]).fetchone()
    if row is None:
        raise Broken(f"{fault}: {invariants.NO_RUN}")
    return row[0], row[1], row[2]
