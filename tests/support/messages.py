"""Shows which messages wait in which queue of a Redis broker, without consuming them."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis import Redis

from worker_scheduler.probe_ids import is_probe
from worker_scheduler.publisher.message_ids import is_probe_entry

QUEUES = ("scheduler", "daily", "backfill")


@dataclass(frozen=True)
class Message:
    """A task's message as kombu stores it in a queue's list."""

    raw: dict[str, Any]

    @property
    def headers(self) -> dict[str, Any]:
        headers: dict[str, Any] = self.raw["headers"]
        return headers

    @property
    def task_id(self) -> str:
        return str(self.headers["id"])

    @property
    def is_probe(self) -> bool:
        """Whether it is no job's, but tells reconcile how far the queue has been taken."""
        return is_probe(UUID(self.task_id))

    @property
    def body(self) -> list[Any]:
        """Arguments, keyword arguments, and what Celery adds."""
        assert self.raw["properties"]["body_encoding"] == "utf-8"
        body: list[Any] = json.loads(self.raw["body"])
        return body


class Broker:
    """The scheduler's keys in one logical database of Redis."""

    def __init__(self, url: str, key_prefix: str) -> None:
        self.url = url
        self.key_prefix = key_prefix

    def messages(self, queue: str) -> list[Message]:
        """What waits in a queue, the first one first."""
        with Redis.from_url(self.url) as redis:
            texts: list[bytes] = redis.lrange(self.key_prefix + queue, 0, -1)
        return [Message(json.loads(text)) for text in reversed(texts)]

    def count(self, queue: str) -> int:
        """How many messages wait in a queue, not counting probes."""
        with Redis.from_url(self.url) as redis:
            entries: list[bytes] = redis.lrange(self.key_prefix + queue, 0, -1)
        return sum(not is_probe_entry(entry) for entry in entries)

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
        """Removes every message that waits in a queue."""
        with Redis.from_url(self.url) as redis:
            redis.delete(self.key_prefix + queue)

    def lose_everything(self) -> None:
        """Removes every key of the scheduler, as a FLUSHALL would."""
        with Redis.from_url(self.url) as redis:
            for key in redis.scan_iter(match=f"{self.key_prefix}*", count=1000):
                redis.delete(key)
