"""The broker's data, as far as they can be seen: whether they are still the same, and how deep a queue is.

Only Redis and Valkey can be asked for that. RabbitMQ needs no such look: it keeps durable messages over a
restart, and puts the messages of a dead worker back at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol
from urllib.parse import urlsplit
from uuid import UUID

from amqp.exceptions import AMQPError, MessageNacked
from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.redaction import escape_control_characters, one_line, show, show_url

_HOW_TO_CHANGE = (
    "; rediss:// verifies certificates unless the URL says otherwise:"
    " ssl_ca_certs=FILE (another CA), ssl_cert_reqs=none (encrypted, not verified)"
)
BROKER_ERRORS = (KombuError, RedisError, AMQPError, MessageNacked, OSError)
"""What a publish raises. kombu makes errors of its own only of those after which it would try again: a
refusal by RabbitMQ, such as of a login, a virtual host or a queue, stays what py-amqp raises.
"""
EPOCH_KEY = "worker_scheduler:epoch"
_REDIS_PORT = 6379
_LONGEST_SERVER = 280
"""Longer than any host name."""


def redis_client(url: str, *, decode_responses: bool = True) -> Redis:
    """A client whose commands end in an error after 15 s instead of waiting for ever.

    Bytes that are not UTF-8 become lone surrogates: another program that wrote them must not stop a pass.
    """
    return Redis.from_url(
        url,
        socket_timeout=15,
        socket_connect_timeout=5,
        decode_responses=decode_responses,
        encoding_errors="surrogateescape",
    )


def unavailable(url: str, error: BaseException) -> StoreUnavailable:
    """The error that says in one line why the broker at this URL is unavailable."""
    return StoreUnavailable(f"the broker at {show_url(url)} is unavailable: {broker_reason(error)}")


def broker_reason(error: BaseException) -> str:
    """The text of an error of Redis or of another broker, in one line and without passwords."""
    reason = one_line(error)
    hint = _HOW_TO_CHANGE if "CERTIFICATE_VERIFY_FAILED" in reason else ""
    return f"{reason}{hint}"


def place(url: str, key_prefix: str) -> str:
    """Where the keys of a Redis are, in one short line: `host:port/database`, and the key prefix."""
    parts = urlsplit(url)
    server = f"{parts.hostname}:{parts.port or _REDIS_PORT}/{parts.path.strip('/') or 0}"
    prefix = f" with the key prefix {show(key_prefix)}" if key_prefix else ""
    return f"{escape_control_characters(server)[:_LONGEST_SERVER]}{prefix}"


class BrokerState(Protocol):
    """Looks at the broker, and changes nothing there but its own keys. Raises StoreUnavailable."""

    @property
    def place(self) -> str:
        """Where the broker's data are, safe to show."""

    def epoch(self) -> UUID | None:
        """The broker epoch: an id that changes when the broker loses its data.

        None if the broker does not show it.
        """

    @property
    def shows_messages(self) -> bool:
        """Whether `waiting` and `taken` say which messages the broker holds."""

    def depth(self, queue: str) -> int | None:
        """The number of messages in the queue, waiting or unacknowledged; None if unknown.

        Probes do not count while the queue is short; among more than 1,000 messages they do.
        """

    def waiting(self, queue: str) -> Iterator[list[str]]:
        """Yields the ids of the messages that wait in the queue, in chunks."""

    def taken(self) -> Iterator[list[str]]:
        """Yields the ids of the messages that workers have taken from any queue and not acknowledged."""

    def reserve_handover(self, partition_key: str, message_id: str) -> bool:
        """Notes a message, before it is sent, as the run's handover; False if the run has one."""

    def take_handover(self, partition_key: str, message_id: str) -> bool:
        """Removes the run's handover if it is this message; says whether it was."""

    def handover(self, partition_key: str) -> str | None:
        """The id of the message that is the run's handover; None if the run has none."""

    def holds(self, queue: str, message_id: str) -> bool:
        """Whether the message is in the queue or unacknowledged; also if that is too long to search."""


class OpaqueBroker:
    """A broker whose data cannot be seen."""

    place = "a broker that cannot be seen"

    def epoch(self) -> UUID | None:
        """Unknown."""
        return None

    @property
    def shows_messages(self) -> bool:
        """Whether its messages can be seen: no."""
        return False

    def depth(self, queue: str) -> int | None:
        """Unknown."""
        return None

    def waiting(self, queue: str) -> Iterator[list[str]]:
        """Yields nothing."""
        yield from ()

    def taken(self) -> Iterator[list[str]]:
        """Yields nothing."""
        yield from ()

    def reserve_handover(self, partition_key: str, message_id: str) -> bool:
        """Returns False: without a depth no queue counts as full, so no run is handed over."""
        return False

    def take_handover(self, partition_key: str, message_id: str) -> bool:
        """Returns False: there is no handover."""
        return False

    def handover(self, partition_key: str) -> str | None:
        """Returns None: there is no handover."""
        return None

    def holds(self, queue: str, message_id: str) -> bool:
        """Returns True: nothing is known to be lost."""
        return True
