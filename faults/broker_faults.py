"""Faults of a broker that answers and takes no messages, as RabbitMQ without memory or disk."""

from __future__ import annotations

import time

from faults import invariants
from faults.faults import Fault
from faults.lane import SLACK_SECONDS, Broken, Lane
from tests.support.amqp_peer import amqp_peer
from tests.support.waiting import wait_until

_BOUND_SECONDS = 15.0
"""How long the product waits for an answer of RabbitMQ."""
_SAID = ("low on memory", "low on disk", None)
"""Why the broker takes nothing; None: it does not say so, and only gives no answer."""
_UNAVAILABLE = 4
_INTERRUPTED = {_UNAVAILABLE, 130}
_SIGTERM_SHARE = 0.5


def play(lane: Lane, fault: Fault) -> bool:
    """Starts a tick on such a broker, and sends SIGTERM to half of them; then a tick on the lane's broker.

    Returns whether jobs were left to send when the first tick had ended. Raises Broken.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    lane.kill("reconciler")  # otherwise it would send the jobs on the lane's broker
    with amqp_peer(chance.choice(_SAID)) as url:
        started = time.monotonic()
        tick = lane.tick(fault, CELERY_BROKER_URL=url, PUBLISHER="group")
        allowed = {_UNAVAILABLE}
        if chance.random() < _SIGTERM_SHARE:
            wait_until(lambda: invariants.NO_RUN not in lane.unfinished(fault), 60, "the run")
            tick.wait(chance.uniform(0, 10))
            tick.terminate()
            allowed = _INTERRUPTED
        ended = tick.wait(_BOUND_SECONDS + SLACK_SECONDS)
        seconds = time.monotonic() - started
    if not ended or tick.exit_status not in allowed:
        raise Broken(f"{fault}: the tick ended after {seconds:.0f} s with {tick.exit_status}")
    left = bool(lane.unfinished(fault))
    again = lane.tick(fault)
    lane.finish(fault, again)
    if again.exit_status != 0:
        raise Broken(f"{fault}: the next tick, on another broker, ended with {again.exit_status}")
    return left
