"""kombu's transport of RabbitMQ, behind the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.transport import pyamqp

from worker_scheduler.intake.gate import Gate, raw_text
from worker_scheduler.intake.readable import MAX_BYTES, Unreadable
from worker_scheduler.publisher import rabbitmq


class _Message(pyamqp.Message):  # type: ignore[misc] # kombu has no types
    def __init__(self, delivered: Any, channel: Any = None, **options: Any) -> None:
        """Raises Unreadable."""
        if len(delivered.body or "") > MAX_BYTES:
            raise Unreadable(f"it has more than {MAX_BYTES} bytes")
        headers = delivered.properties.get("application_headers") or {}
        if method := headers.get("compression"):
            delivered.body = channel.gate.unpack(delivered.body, method)
            del headers["compression"]
        super().__init__(delivered, channel, **options)


class Channel(rabbitmq.Channel):
    """Takes messages; sets those aside that cannot be read."""

    Message = _Message

    @property
    def gate(self) -> Gate:
        """The gate of the app."""
        gate: Gate = self.connection.client.transport.gate
        return gate

    def message_to_python(self, raw_message: Any) -> Any:
        """The message; the consumer asks for it again."""
        return raw_message if isinstance(raw_message, _Message) else _Message(raw_message, channel=self)

    def basic_consume(
        self, queue: str = "", *, no_ack: bool = False, callback: Callable[[Any], Any], **options: Any
    ) -> Any:
        """Starts to consume; no message ends the process by what its consumer raises."""
        guarded = self.gate.guarded(callback, queue, bool(no_ack))

        def take(delivered: Any) -> None:
            try:
                message = self.message_to_python(delivered)
            except Unreadable as fault:
                self.gate.set_aside(queue, raw_text(pyamqp_message(delivered)), fault)
                if not no_ack:
                    self.basic_reject(delivered.delivery_tag, requeue=False)
            else:
                guarded(message)

        return super().basic_consume(queue, no_ack=no_ack, callback=take, **options)


def pyamqp_message(delivered: Any) -> Any:
    """kombu's message of one that is not to be unpacked."""
    headers = delivered.properties.pop("application_headers", None) or {}
    message = pyamqp.Message(delivered)
    message.headers = headers
    return message


class _Connection(rabbitmq.Connection):
    Channel = Channel


class Transport(rabbitmq.Transport):
    """The transport of `amqp://`."""

    Connection = _Connection
    gate: Gate


class SSLTransport(rabbitmq.SSLTransport):
    """The transport of `amqps://`."""

    Connection = _Connection
    gate: Gate
