"""Reads what kombu keeps in Redis. Anything may stand there, and nothing of it raises an error here.

An entry that has another form than kombu's counts as unreadable: a worker could not use it either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from kombu.transport.redis import Channel

UNACKED = "unacked"
"""The hash of messages that workers have taken and not acknowledged; its name without the key prefix."""


@dataclass(frozen=True)
class Unacknowledged:
    """A message that a worker has. queue: where it was taken from."""

    queue: str
    message: Mapping[str, object]


def lists_of(queue: str) -> list[str]:
    """The lists of a queue: kombu has one per priority step, and without priorities uses the first."""
    return [queue, *(f"{queue}{Channel.sep}{step}" for step in Channel.priority_steps[1:])]


def read_unacknowledged(text: str) -> Unacknowledged | None:
    """Reads an entry of `unacked`, which is JSON: [message, exchange, routing key]; None if it is not."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, or deeply nested
        return None
    match entry:
        case [dict() as message, _, str() as routing_key]:
            return Unacknowledged(routing_key, message)
        case _:
            return None
