"""A queue and its worker, played step by step: what is taken, held, put back and done."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID, uuid4

from redis import Redis

from tests.support.messages import Broker
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.worker.claims import Worker

INTERVAL = timedelta(seconds=60)


@dataclass
class Queue:
    """The queue `daily` as workers see it, with what one of them holds."""

    context: TickContext
    broker: Broker

    @contextmanager
    def redis(self) -> Iterator[Redis]:
        with Redis.from_url(self.broker.url) as redis:
            yield redis

    @property
    def key(self) -> str:
        return f"{self.broker.key_prefix}daily"

    @property
    def unacked(self) -> str:
        return f"{self.broker.key_prefix}unacked"

    def lose(self, job_id: UUID) -> bytes:
        """Takes a job's message out of the middle of the queue, and returns it."""
        (message,) = [one for one in self.entries() if str(job_id).encode() in one]
        self.remove(message)
        return message

    def entries(self) -> list[bytes]:
        """What waits, the first one last."""
        with self.redis() as redis:
            return cast(list[bytes], redis.lrange(self.key, 0, -1))

    def remove(self, entry: bytes) -> None:
        with self.redis() as redis:
            assert redis.lrem(self.key, 0, cast(str, entry)) == 1

    def answer(self, entry: bytes) -> None:
        """Takes a probe out of the queue, whatever is before it, and answers it."""
        self.remove(entry)
        worker = Worker(self.context.database, self.context.clock, self.context.settings.lease, 3)
        worker.answer_probe(task_id_of(entry))

    def requeue(self, message: bytes) -> None:
        """Puts a message behind the others, as `reject(requeue=True)` does."""
        with self.redis() as redis:
            redis.lpush(self.key, message)

    def restore(self, message: bytes) -> None:
        """Puts a message before the others, as the visibility timeout does."""
        with self.redis() as redis:
            redis.rpush(self.key, message)

    def hold(self, message: bytes) -> None:
        """Notes a message as a worker that has it."""
        with self.redis() as redis:
            redis.hset(self.unacked, str(uuid4()), json.dumps([json.loads(message), "", "daily"]))

    def let_go(self) -> None:
        """The workers acknowledge all that they hold."""
        with self.redis() as redis:
            redis.delete(self.unacked)

    def work(self, leave: int = 0, *, answers: bool = True) -> None:
        """A worker does what waits, the first first, until `leave` messages are left."""
        worker = Worker(self.context.database, self.context.clock, self.context.settings.lease, 3)
        with self.redis() as redis:
            while redis.llen(self.key) > leave:
                task_id = task_id_of(cast(bytes, redis.rpop(self.key)))
                if answers or not is_probe(task_id):
                    worker.run(task_id, lambda _: None)


def task_id_of(entry: bytes) -> UUID:
    return UUID(json.loads(entry)["headers"]["id"])
