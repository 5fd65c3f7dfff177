"""Redis or Valkey as the broker: what it holds, asked directly, by the names that kombu gives its keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

from redis.exceptions import RedisError, ResponseError

from worker_scheduler.publisher import message_ids, unreadable
from worker_scheduler.publisher.broker import EPOCH_KEY, place, redis_client, unavailable
from worker_scheduler.publisher.kombu_entries import UNACKED, lists_of, read_unacknowledged
from worker_scheduler.publisher.message_ids import CHUNK, is_probe_entry
from worker_scheduler.publisher.unreadable import UnreadableKeys
from worker_scheduler.redaction import show

_LONGEST_SEARCH = 100
"""Chunks of a queue that a search for one message reads: at most about 50 MB."""
_HANDOVER_SECONDS = 24 * 3600
"""If a run's handover is lost, it may have another one after this time; reconcile continues it sooner."""


class RedisBroker:
    """Redis or Valkey, asked directly, by the names that kombu gives its keys."""

    def __init__(self, url: str, key_prefix: str) -> None:
        self._url = url
        self._prefix = key_prefix
        self._client = redis_client(url)
        # Entries of a queue may be any bytes.
        self._raw_client = redis_client(url, decode_responses=False)
        self._unreadable = UnreadableKeys()

    @property
    def place(self) -> str:
        """Host, port, database and key prefix, without user and password."""
        return place(self._url, self._prefix)

    def epoch(self) -> UUID | None:
        """The value of a key that is lost together with the data. Sets a new one if it is gone."""
        key = f"{self._prefix}{EPOCH_KEY}"
        try:
            # One atomic command: the first process sets it, all others get the value that it set.
            fresh = str(uuid4())
            marker = self._client.set(key, fresh, nx=True, get=True)
        except (RedisError, OSError) as error:
            if unreadable.is_wrong_type(error):
                raise unreadable.unreadable_epoch(self._url, key, "another type") from error
            raise unavailable(self._url, error) from error
        return unreadable.read_epoch(self._url, key, fresh if marker is None else marker)

    def require_readable_epoch(self) -> None:
        """Raises StoreUnavailable if the broker epoch cannot be read. It sets none, as `epoch` would."""
        key = f"{self._prefix}{EPOCH_KEY}"
        try:
            marker = self._client.get(key)
        except (RedisError, OSError) as error:
            if unreadable.is_wrong_type(error):
                raise unreadable.unreadable_epoch(self._url, key, "another type") from error
            raise unavailable(self._url, error) from error
        if marker is not None:
            unreadable.read_epoch(self._url, key, marker)

    def depth(self, queue: str) -> int | None:
        """Looks at the lists, then at what workers have taken and not acknowledged.

        A message moves from a list to `unacked`, so in this order it is not missed, except in the moment
        after the worker has popped it and before the worker has noted it.
        """
        keys, unacked = self._lists(queue), f"{self._prefix}{UNACKED}"
        try:
            waiting = sum(self._answers(keys, "list", 0, "LLEN"))
            if waiting <= CHUNK:
                lists = self._answers(keys, "list", [], "LRANGE", 0, -1)
                waiting = sum(not is_probe_entry(entry) for entries in lists for entry in entries)
            (taken,) = self._answers([unacked], "hash", [], "HVALS")
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        jobs = [entry for entry in taken if not is_probe_entry(entry)]
        return int(waiting) + self._queues_of(unacked, jobs).count(queue)

    @property
    def shows_messages(self) -> bool:
        """Whether its messages can be seen: yes."""
        return True

    def waiting(self, queue: str) -> Iterator[list[str]]:
        """Reads the queue's lists. Raises StoreUnavailable, also between two chunks."""
        for key in self._lists(queue):
            yield from self._chunks(key, "list", message_ids.waiting(self._raw_client, key))

    def taken(self) -> Iterator[list[str]]:
        """Reads the hash `unacked`. Raises StoreUnavailable, also between two chunks."""
        key = f"{self._prefix}{UNACKED}"
        return self._chunks(key, "hash", message_ids.taken(self._raw_client, key))

    def _lists(self, queue: str) -> list[str]:
        return [f"{self._prefix}{name}" for name in lists_of(queue)]

    def _chunks(self, key: str, type_name: str, chunks: Iterator[list[str]]) -> Iterator[list[str]]:
        try:
            yield from chunks
        except ResponseError as error:
            self._read(key, type_name, None, error)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error

    def _answers(self, keys: Sequence[str], type_name: str, nothing: Any, *command: str | int) -> list[Any]:
        """The answers to one command for each key; `nothing` for a key that holds another type."""
        name, *arguments = command
        with self._raw_client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.execute_command(name, key, *arguments)  # type: ignore[no-untyped-call]
            answers = pipeline.execute(raise_on_error=False)
        return [
            self._read(key, type_name, nothing, answer) for key, answer in zip(keys, answers, strict=True)
        ]

    def _read(self, key: str, type_name: str, nothing: Any, answer: Any) -> Any:
        """What Redis answers about a key; `nothing` if the key holds another type."""
        if unreadable.is_wrong_type(answer):
            self._unreadable.warn(key, f"it is not a {type_name}: delete it")
            return nothing
        if isinstance(answer, ResponseError):
            raise unavailable(self._url, answer) from answer
        return answer

    def _queues_of(self, key: str, entries: list[bytes]) -> list[str]:
        """The queues of the entries of `unacked` that can be read."""
        texts = [entry.decode(errors="surrogateescape") for entry in entries]
        read = [(text, read_unacknowledged(text)) for text in texts]
        if others := [text for text, found in read if found is None]:
            self._unreadable.warn(
                key, f"{len(others)} of {len(entries)} entries are not kombu's, such as {show(others[0])}"
            )
        return [found.queue for _, found in read if found is not None]

    def reserve_handover(self, partition_key: str, message_id: str) -> bool:
        """Reserves one handover per run, no matter how many processes try, or how often."""
        try:
            noted = self._client.set(
                self._handover_key(partition_key), message_id, nx=True, ex=_HANDOVER_SECONDS
            )
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return bool(noted)

    def take_handover(self, partition_key: str, message_id: str) -> bool:
        """Compares the message's id: a message that is delivered twice is a handover only once."""
        key = self._handover_key(partition_key)
        try:
            # No other message can be reserved between the two commands, since this one is.
            is_handover = self._noted(key) == message_id
            if is_handover:
                self._client.delete(key)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return is_handover

    def handover(self, partition_key: str) -> str | None:
        """An id of no message if the key cannot be read."""
        try:
            return self._noted(self._handover_key(partition_key))
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error

    def holds(self, queue: str, message_id: str) -> bool:
        """Searches the lists from the side on which messages come in, then `unacked`.

        In this order a message that is published, taken or put back during the search is not missed, except
        in the moments that `depth` names, or if a worker rejects it: look twice.
        """
        if not unreadable.is_id(message_id):
            return False  # another program wrote the note of a handover
        for number, ids in enumerate(self.waiting(queue)):
            if message_id in ids or number >= _LONGEST_SEARCH:
                return True
        return any(message_id in ids for ids in self.taken())

    def _noted(self, key: str) -> str | None:
        """The id of the message that is noted as a handover; an id of no message if it cannot be read."""
        try:
            noted = self._client.get(key)
        except ResponseError as error:
            return str(self._read(key, "string", "", error))
        return None if noted is None else str(noted)

    def _handover_key(self, partition_key: str) -> str:
        return f"{self._prefix}worker_scheduler:baton:{partition_key}"
