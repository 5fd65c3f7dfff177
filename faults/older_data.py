"""Redis is killed and comes back with older data, while other runs keep its queue filled.

The marker of the broker epoch is in the older data, too, so it does not tell that messages are gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import count

from redis import Redis
from redis.exceptions import RedisError

from faults.children import Child
from faults.faults import USERS_PER_FAULT, Fault
from faults.lane import SLACK_SECONDS, Broken, Lane
from faults.servers import Servers
from tests.support.waiting import Overdue, wait_until
from worker_scheduler.publisher.broker import EPOCH_KEY

HANDLER_SECONDS = 0.03
_FEWEST = USERS_PER_FAULT * 3 // 2
"""Messages in the queue at which another run is started, 2 s before it would be empty."""
_LATENCY_SECONDS = (2 * USERS_PER_FAULT + _FEWEST) * 2 * HANDLER_SECONDS
"""How long a message waits at most: the messages of two runs and the rest, on a busy machine."""
_FOUND_SECONDS = 1.0 + 2 * _LATENCY_SECONDS + 3 * 2.0
"""The documented bound: a grace time, the latency twice, and three passes, each with its pause."""
BOUND_SECONDS = _FOUND_SECONDS + _LATENCY_SECONDS + SLACK_SECONDS
"""What is found and sent again waits behind the other messages."""
_END_SECONDS = 60.0
_days: Iterator[date] = (date(1900, 1, 1) + timedelta(days=number) for number in count())


class _Load:
    """Runs of other days, one after the other, so that the queue is never empty."""

    def __init__(self, lane: Lane, redis: Redis) -> None:
        self._lane = lane
        self._redis = redis
        self._ticks: list[Child] = []
        self.fewest = USERS_PER_FAULT
        """The fewest messages that waited in the queue since then."""

    def keep_up(self) -> int:
        """Starts another run if few messages are left or coming; returns how many wait.

        On a busy machine workers are done with a run before the next tick has started, so ticks overlap.
        """
        self._lane.supervise()
        try:
            waiting = int(self._redis.llen("daily"))
        except RedisError:
            return 0
        self.fewest = min(self.fewest, waiting)
        coming = USERS_PER_FAULT * sum(tick.running for tick in self._ticks)
        if waiting + coming < _FEWEST:
            day = next(_days)
            arguments = ["scheduler", "daily", "--date", str(day)]
            lock = str(100_000 + day.toordinal())
            self._ticks.append(self._lane.launch(arguments, "load", SCHEDULER_DAILY_LOCK_ID=lock))
        return waiting

    @property
    def ticks(self) -> list[Child]:
        return self._ticks


def play(lane: Lane, servers: Servers, fault: Fault) -> bool:
    """Loses the messages of the fault's run, and waits under load until its jobs are done. Raises Broken.

    Returns whether messages were lost though the marker is the same, and the queue was filled all the time.
    """
    lane.prepare(fault)
    with Redis.from_url(lane.redis_url) as redis:
        load = _Load(lane, redis)
        _fill_queue(fault, load)
        redis.save()
        marker = redis.get(EPOCH_KEY)
        tick = lane.tick(fault)
        lane.finish(fault, tick)
        lost = int(redis.llen("daily"))
        servers.restart_redis()
        same_marker = marker is not None and redis.get(EPOCH_KEY) == marker
        lost -= int(redis.llen("daily"))
        _await_end_under_load(lane, fault, load)
        lane.finish(fault, *load.ticks)
        fewest = load.fewest
        _drain(lane, fault)
    return lost > 0 and same_marker and fewest > 0


def _fill_queue(fault: Fault, load: _Load) -> None:
    try:
        wait_until(lambda: load.keep_up() >= _FEWEST, _END_SECONDS, "a filled queue", poll_seconds=0.1)
    except Overdue as overdue:
        raise Broken(f"{fault}: {overdue}") from None


def _await_end_under_load(lane: Lane, fault: Fault, load: _Load) -> None:
    load.fewest = USERS_PER_FAULT

    def done() -> bool:
        load.keep_up()
        return not [rest for rest in lane.unfinished(fault) if "jobs are" in rest]

    try:
        wait_until(done, BOUND_SECONDS, "the lost jobs", poll_seconds=0.1)
    except Overdue:
        rest = "; ".join(lane.unfinished(fault))
        raise Broken(f"{fault}: after {BOUND_SECONDS:.0f} s under load: {rest}") from None


def _drain(lane: Lane, fault: Fault) -> None:
    """Waits until the load's own jobs are done: some of their messages are lost, too."""
    started = time.monotonic()
    while rest := lane.open_jobs():
        lane.supervise()
        if time.monotonic() - started > _END_SECONDS:
            raise Broken(f"{fault}: after {_END_SECONDS:.0f} s: {rest} jobs of the load are not done")
        time.sleep(0.1)  # between two looks, until the deadline above
