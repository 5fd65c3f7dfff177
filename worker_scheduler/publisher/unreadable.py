"""What to say about a key in Redis that holds something else than it should."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from redis import Redis
from redis.exceptions import ResponseError

from worker_scheduler import logs
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.redaction import show, show_url

log = logs.get_logger(__name__)

_DIGITS = (8, 4, 4, 4, 12)
_ID_PATTERN = "-".join("[0-9a-fA-F]" * number for number in _DIGITS)
LUA_EPOCH_PATTERN = "%-".join("%x" * number for number in _DIGITS)
"""The form of an id, and in the script that publishes, of a broker epoch."""


class UnreadableKeys:
    """Warns about each key once: a pass looks at some keys many times."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def warn(self, key: str, reason: str) -> None:
        """Warns that what the key holds counts for no queue. reason: already safe to show."""
        if key not in self._named:
            self._named.add(key)
            log.warning(
                "cannot read what Redis holds, it counts for no queue", key=show(key), reason=reason
            )


def is_wrong_type(answer: object) -> bool:
    """Whether Redis says that a key holds another type than the command is for."""
    return isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE")


def is_id(text: str) -> bool:
    """Whether a text has the form of an epoch or of a message's id."""
    return re.fullmatch(_ID_PATTERN, text) is not None


def read_epoch(url: str, key: str, value: object) -> UUID:
    """The broker epoch that the key holds. Raises StoreUnavailable, which says how to fix the key."""
    if isinstance(value, str) and is_id(value):
        return UUID(value)
    raise unreadable_epoch(url, key, show(value))


def unreadable_epoch(url: str, key: str, what: str) -> StoreUnavailable:
    """The error for a key that holds no broker epoch. what: what it holds, safe to show."""
    return StoreUnavailable(
        f"the key {show(key)} at {show_url(url)} holds {what} instead of the broker epoch: delete the key;"
        " then reconcile sends what still waits again"
    )


def wrong_type(client: Redis, url: str, expected: Mapping[str, str]) -> StoreUnavailable | None:
    """The error that names the first key that holds another type than expected; None if none does."""
    for key, expected_type in expected.items():
        found: Any = client.type(key)
        if found not in (expected_type, "none"):
            return StoreUnavailable(
                f"the key {show(key)} at {show_url(url)} holds a {show(found)[1:-1]} instead of a"
                f" {expected_type}: delete the key"
            )
    return None
