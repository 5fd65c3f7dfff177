"""kombu's Redis transport, behind the gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import RedisError

from worker_scheduler.intake.gate import BROKER_ERRORS, Gate
from worker_scheduler.intake.readable import MAX_BYTES, Unreadable, require_envelope


class _Popped:
    """Remembers the latest entry that came from a queue: kombu reads it only after it is gone there."""

    popped: tuple[bytes, bytes] | None = None

    @property
    def too_large(self) -> bool:
        """Whether the latest entry must not be parsed."""
        return self.popped is not None and len(self.popped[1]) > MAX_BYTES

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """Reads an answer of Redis. An entry that is too large looks as if there were none."""
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[misc]
        if command_name != "BRPOP":
            return answer
        self.popped = answer or None
        return None if self.too_large else answer


class _Client(_Popped, Redis):
    pass


class _PrefixedClient(_Popped, redis.PrefixedStrictRedis):  # type: ignore[misc] # kombu has no types
    pass


class _Message(virtual.Message):  # type: ignore[misc] # kombu has no types
    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        """Raises Unreadable before the message counts as taken."""
        require_envelope(payload)
        try:
            super().__init__(_unpacked(payload, channel), channel, **options)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"its body cannot be read: {type(error).__name__}: {error}") from error
        self._raw = payload  # a message that goes back is packed again
        if self.errors:
            raise Unreadable(f"its body cannot be read: {self.errors[0][1]}")


def _unpacked(payload: dict[str, Any], channel: Any) -> dict[str, Any]:
    headers, properties = payload["headers"], payload["properties"]
    if not headers.get("compression"):
        return payload
    packed = channel.decode_body(payload["body"], properties.get("body_encoding"))
    return {
        **payload,
        "headers": {key: value for key, value in headers.items() if key != "compression"},
        "properties": {**properties, "body_encoding": "utf-8"},
        "body": channel.gate.unpack(packed, headers["compression"]),
    }


class _QoS(redis.QoS):  # type: ignore[misc] # kombu has no types
    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Puts a message back. One that cannot be read must not keep the others from being put back."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - kombu raises what it happens to meet
            with self.channel.conn_or_acquire(client) as connected:
                entry = connected.hget(self.unacked_key, tag) or b""
                self.channel.gate.set_aside(
                    self.unacked_key, entry, f"it cannot be put back: {type(error).__name__}: {error}"
                )
                self._remove_from_indices(tag).execute()


class Channel(redis.Channel):  # type: ignore[misc] # kombu has no types
    """Takes entries from queues; sets those aside that are no messages."""

    Message = _Message
    QoS = _QoS
    _heard: Any = None

    @property
    def gate(self) -> Gate:
        """The gate of the app."""
        gate: Gate = self.connection.gate
        return gate

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], *others: Any, **options: Any
    ) -> Any:
        """Starts to consume; no message ends the process by what its consumer raises."""
        guarded = self.gate.guarded(callback, queue, bool(no_ack))
        return super().basic_consume(queue, no_ack, guarded, *others, **options)

    def _get_client(self) -> Any:
        client = super()._get_client()
        return partial(_PrefixedClient, **client.keywords) if isinstance(client, partial) else _Client

    def _do_restore_message(
        self, payload: Any, exchange: Any, routing_key: Any, pipe: Any, leftmost: bool = False
    ) -> None:
        require_envelope(payload)  # kombu would log a traceback and forget the message
        super()._do_restore_message(payload, exchange, str(routing_key), pipe, leftmost)

    def _brpop_read(self, **options: Any) -> Any:
        self.client.popped, self.connection.delivers = None, False
        try:
            return super()._brpop_read(**options)
        except Empty:
            if self.client.too_large:
                self._set_popped_aside(f"it has more than {MAX_BYTES} bytes")
            raise
        except BROKER_ERRORS:
            raise
        except Exception as error:
            if self.client.popped is None or self.connection.delivers:
                raise
            self._set_popped_aside(f"it is not JSON: {type(error).__name__}: {error}")
            raise Empty from error

    def _set_popped_aside(self, reason: str) -> None:
        queue, entry = self.client.popped
        self.gate.set_aside(queue.decode(errors="backslashreplace"), entry, reason)

    def _receive_one(self, client: Any) -> Any:
        self._heard, self.connection.delivers = None, False
        try:
            return super()._receive_one(client)
        except (Empty, *BROKER_ERRORS):
            raise
        except Exception as error:
            if self._heard is None or self.connection.delivers:
                raise
            *_, place, data = self._heard
            reason = f"it cannot be read: {type(error).__name__}: {error}"
            self.gate.set_aside(place.decode(errors="backslashreplace"), data, reason)
            raise Empty from error

    def _handle_message(self, client: Any, response: Any) -> Any:
        self._heard = response
        return super()._handle_message(client, response)


class Transport(redis.Transport):  # type: ignore[misc] # kombu has no types
    """The transport of `redis://` and `rediss://`."""

    Channel = Channel
    gate: Gate
    delivers = False
    """Whether the entry that a channel has just taken was JSON and is being delivered."""

    def _deliver(self, message: Any, queue: str) -> None:
        self.delivers = True
        try:
            super()._deliver(message, queue)
        except Unreadable as fault:
            self.gate.set_aside(queue, dumps(message), fault)
