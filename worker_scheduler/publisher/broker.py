"""What can be seen of the broker's data: whether it is still the same, and what of a queue it holds.

Only Redis and Valkey can be asked so. RabbitMQ keeps durable messages over a restart and returns what
a dead worker held at once, so nothing of it has to be looked for.
"""

from __future__ import annotations

import json
from typing import Protocol
from uuid import UUID, uuid4

from kombu.transport.redis import Channel
from redis import Redis
from redis.exceptions import RedisError

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.redaction import escape_control_characters, mask_passwords, show_url

_SAY_OTHERWISE = (
    "; rediss:// verifies certificates unless the URL says otherwise:"
    " ssl_ca_certs=FILE (another CA), ssl_cert_reqs=none (encrypted, not verified)"
)
EPOCH_KEY = "worker_scheduler:epoch"
_BATON_SECONDS = 24 * 3600
"""After which a run whose baton has vanished may have another; reconcile dispatches it before that."""


def redis_client(url: str) -> Redis:
    """A client whose commands end in an error after 15 s, not in a hang for ever."""
    return Redis.from_url(url, socket_timeout=15, socket_connect_timeout=5, decode_responses=True)


def unavailable(url: str, error: BaseException) -> StoreUnavailable:
    """The broker's fault in one line."""
    return StoreUnavailable(f"the broker at {show_url(url)} is unavailable: {reason_of(error)}")


def reason_of(error: BaseException) -> str:
    """What a client of Redis or of the broker says, in one line and without passwords."""
    reason = escape_control_characters(mask_passwords(" ".join(str(error).split())))
    hint = _SAY_OTHERWISE if "CERTIFICATE_VERIFY_FAILED" in reason else ""
    return f"{reason}{hint}"


class BrokerState(Protocol):
    """Looks at the broker; changes nothing but markers of its own. Raises StoreUnavailable."""

    def epoch(self) -> UUID | None:
        """Names the present life of the broker's data; another id means that the data were lost.

        None where it cannot be seen.
        """

    def depth(self, queue: str) -> int | None:
        """Messages of the queue that it holds, waiting or unacknowledged; None if unknown."""

    def note_baton(self, partition_key: str, message_id: str) -> bool:
        """Notes the message, which is still to be sent, as the baton of a run; False if it has one."""

    def take_baton(self, partition_key: str, message_id: str) -> bool:
        """Whether the message is the baton of its run; the run then has none."""


class OpaqueBroker:
    """A broker that shows nothing of its data."""

    def epoch(self) -> UUID | None:
        """Unknown."""
        return None

    def depth(self, queue: str) -> int | None:
        """Unknown."""
        return None

    def note_baton(self, partition_key: str, message_id: str) -> bool:
        """There are none: without a depth no queue is ever full."""
        return False

    def take_baton(self, partition_key: str, message_id: str) -> bool:
        """There are none."""
        return False


class RedisBroker:
    """Redis or Valkey, asked past kombu: under the names that kombu gives its keys."""

    def __init__(self, url: str, key_prefix: str) -> None:
        self._url = url
        self._prefix = key_prefix
        self._client = redis_client(url)

    def epoch(self) -> UUID | None:
        """The marker, which goes when the data go; where it is gone, a new one is set."""
        key = f"{self._prefix}{EPOCH_KEY}"
        try:
            # One atomic command: whoever comes first sets it, all others are told what it is.
            fresh = str(uuid4())
            marker = self._client.set(key, fresh, nx=True, get=True)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return UUID(fresh if marker is None else str(marker))

    def depth(self, queue: str) -> int | None:
        """Looks at the lists, then at what workers have taken and not acknowledged.

        In this order: a message moves from a list to `unacked`, so it cannot slip by unseen; but
        for the moment in which the worker has popped it and not yet noted it.
        """
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for name in _lists_of(queue):
                    pipeline.llen(f"{self._prefix}{name}")
                pipeline.hvals(f"{self._prefix}unacked")
                *waiting, unacknowledged = pipeline.execute()
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return sum(map(int, waiting)) + sum(_routed_to(str(entry)) == queue for entry in unacknowledged)

    def note_baton(self, partition_key: str, message_id: str) -> bool:
        """One a run, whoever rings it how often."""
        try:
            noted = self._client.set(self._baton_key(partition_key), message_id, nx=True, ex=_BATON_SECONDS)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return bool(noted)

    def take_baton(self, partition_key: str, message_id: str) -> bool:
        """By the message's id: one that comes twice, after a crash, is a baton only once."""
        key = self._baton_key(partition_key)
        try:
            # Nobody notes another one in between, since this one is noted.
            is_ours = self._client.get(key) == message_id
            if is_ours:
                self._client.delete(key)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return is_ours

    def _baton_key(self, partition_key: str) -> str:
        return f"{self._prefix}worker_scheduler:baton:{partition_key}"


def _lists_of(queue: str) -> list[str]:
    """kombu has a list for each step of a priority; without priorities, only the first is used."""
    return [queue, *(f"{queue}{Channel.sep}{step}" for step in Channel.priority_steps[1:])]


def _routed_to(entry: str) -> str | None:
    """The queue of an entry of kombu's `unacked` hash: JSON of [message, exchange, routing key]."""
    try:
        _, _, routing_key = json.loads(entry)
    except ValueError:
        return None
    return str(routing_key)
