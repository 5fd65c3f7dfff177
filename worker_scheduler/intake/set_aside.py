"""The list of the messages that no worker could read, in Redis, where an operator can look at them."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from worker_scheduler import logs
from worker_scheduler.clock import Clock, utc_now
from worker_scheduler.publisher.broker import redis_client
from worker_scheduler.redaction import escape_control_characters, mask_passwords

log = logs.get_logger(__name__)

SET_ASIDE_KEY = "worker_scheduler:set_aside"
MAX_ENTRIES = 1000
MAX_ENTRY_BYTES = 16 * 1024
"""The list holds 16 MiB at most."""
_MAX_REASON = 300


class SetAside:
    """Sets messages aside, the newest first; the oldest ones make way.

    url: the broker if it is Redis, otherwise the Redis of Beat. clock: this host's is good enough for a
    note to a person.
    """

    def __init__(self, url: str, key_prefix: str, clock: Clock = utc_now) -> None:
        self._url = url
        self._clock = clock
        self._key = f"{key_prefix}{SET_ASIDE_KEY}"

    @cached_property
    def _client(self) -> Redis:
        return redis_client(self._url)

    def add(self, queue: str, raw: str | bytes, reason: object) -> None:
        """Notes the message and logs one line. It never raises: the worker must go on.

        raw: the message as it was in the queue. If Redis does not take it, it is only in the log line.
        """
        text = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw
        shown = _one_line(str(reason), _MAX_REASON)
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.lpush(self._key, _entry(queue, self._clock(), shown, text))
                pipeline.ltrim(self._key, 0, MAX_ENTRIES - 1)
                pipeline.execute()
        except (RedisError, OSError) as error:
            log.error(
                "message dropped, it could not be set aside",
                queue=queue,
                reason=shown,
                error=_one_line(str(error), _MAX_REASON),
                message=_one_line(text, 1000),
            )
        else:
            log.error("message set aside", queue=queue, reason=shown)


def _entry(queue: str, now: datetime, reason: str, text: str) -> str:
    """The entry's JSON; a long message is cut until the entry is small enough."""
    fields: dict[str, Any] = {
        "queue": queue[:200],
        "at": now.isoformat(timespec="seconds"),
        "reason": reason,
        "bytes": len(text),
    }
    length = MAX_ENTRY_BYTES
    while len(entry := json.dumps({**fields, "message": text[:length]})) > MAX_ENTRY_BYTES:
        length //= 2
    return entry


def _one_line(text: str, length: int) -> str:
    # What is cut off first cannot slow down the masking; what is masked first cannot be half cut.
    masked = mask_passwords(text[: 2 * length])[:length]
    return escape_control_characters(masked)
