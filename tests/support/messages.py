"""Looks into a Redis broker: which messages wait in which queue. It consumes none."""

import json
from dataclasses import dataclass
from typing import Any

from redis import Redis

QUEUES = ("scheduler", "daily", "backfill")


@dataclass(frozen=True)
class Message:
    """A task's message as kombu has put it into its list."""

    raw: dict[str, Any]

    @property
    def headers(self) -> dict[str, Any]:
        headers: dict[str, Any] = self.raw["headers"]
        return headers

    @property
    def task_id(self) -> str:
        return str(self.headers["id"])

    @property
    def body(self) -> list[Any]:
        """Arguments, keyword arguments, and what Celery adds."""
        assert self.raw["properties"]["body_encoding"] == "utf-8"
        body: list[Any] = json.loads(self.raw["body"])
        return body


class Broker:
    """One logical database of Redis, and our keys in it."""

    def __init__(self, url: str, key_prefix: str) -> None:
        self.url = url
        self.key_prefix = key_prefix

    def messages(self, queue: str) -> list[Message]:
        """What waits in a queue, the first one first."""
        with Redis.from_url(self.url) as redis:
            texts: list[bytes] = redis.lrange(self.key_prefix + queue, 0, -1)
        return [Message(json.loads(text)) for text in reversed(texts)]

    def count(self, queue: str) -> int:
        """How many messages wait in a queue."""
        with Redis.from_url(self.url) as redis:
            length: int = redis.llen(self.key_prefix + queue)
        return length

    def unacknowledged(self) -> int:
        """How many messages workers have taken and not yet acknowledged."""
        with Redis.from_url(self.url) as redis:
            number: int = redis.hlen(f"{self.key_prefix}unacked")
        return number

    def counts(self) -> dict[str, int]:
        """The queues that hold a message, and how many."""
        return {queue: number for queue in QUEUES if (number := self.count(queue))}

    def everything(self) -> dict[str, bytes | None]:
        """Every key, with its serialised value; for comparing before and after."""
        with Redis.from_url(self.url) as redis:
            keys = sorted(redis.scan_iter(match=f"{self.key_prefix}*", count=1000))
            return {key.decode(): redis.dump(key) for key in keys}

    def lose_queue(self, queue: str) -> None:
        """As if workers had taken all that waits, and had done it."""
        with Redis.from_url(self.url) as redis:
            redis.delete(self.key_prefix + queue)

    def lose_everything(self) -> None:
        """As a FLUSHALL would, to our keys only."""
        with Redis.from_url(self.url) as redis:
            for key in redis.scan_iter(match=f"{self.key_prefix}*", count=1000):
                redis.delete(key)
