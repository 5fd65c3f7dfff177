"""kombu's transport of RabbitMQ, which waits for no answer for ever.

RabbitMQ stops reading from a publisher while it has too little memory or disk. py-amqp would wait for the
end of that, also when it closes the connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import kombu
from amqp import spec
from amqp.exceptions import (
    IrrecoverableConnectionError,
    MessageNacked,
    RecoverableConnectionError,
)
from kombu.exceptions import OperationalError
from kombu.transport import pyamqp

PATIENCE_SECONDS = 15
"""As with Redis: see `socket_timeout` in celeryconfig.py."""


class Blocked(IrrecoverableConnectionError, OperationalError):  # type: ignore[misc] # no types
    """RabbitMQ has blocked the connection. It would block another one, too: kombu must not try that."""

    def __str__(self) -> str:
        return str(self.reply_text)


class Connection(pyamqp.Connection):  # type: ignore[misc] # kombu has no types
    """A connection that knows whether RabbitMQ has blocked it, and why."""

    blocked_because: str | None = None
    _blocked_at: float = 0.0
    _deadline: float | None = None
    _METHODS = pyamqp.Connection._METHODS | {
        spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s"),  # with its reason
    }

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Waits for an answer to the connection. Raises RecoverableConnectionError after 15 s."""
        return self.bounded(super().wait, *arguments, **options)

    def bounded(self, wait: Any, *arguments: Any, **options: Any) -> Any:
        """Calls `wait`, in which drain_events ends in an error after 15 s."""
        outermost = self._deadline is None
        if outermost:
            self._deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            return wait(*arguments, **options)
        finally:
            if outermost:
                self._deadline = None

    def drain_events(self, timeout: float | None = None) -> None:
        """Reads until something has come. Raises TimeoutError, or RecoverableConnectionError."""
        if self._deadline is None:
            super().drain_events(timeout)
            return
        left = self._deadline - time.monotonic()
        try:
            super().drain_events(max(min(left, timeout or left), 0.001))
        except TimeoutError as error:
            if time.monotonic() < self._deadline:
                raise
            self.refuse_if_blocked(for_seconds=0)
            self.collect()  # whatever else is said on it would wait as long
            raise RecoverableConnectionError(
                f"RabbitMQ gave no answer within {PATIENCE_SECONDS} s"
            ) from error

    def refuse_if_blocked(self, for_seconds: float = PATIENCE_SECONDS) -> None:
        """Raises Blocked if RabbitMQ has blocked the connection for so long."""
        if self.blocked_because is not None and time.monotonic() >= self._blocked_at + for_seconds:
            raise Blocked(f"RabbitMQ takes no messages: {self.blocked_because}")

    def close(self, *arguments: Any, **options: Any) -> Any:
        """Says goodbye, unless RabbitMQ does not listen."""
        return self.collect() if self.blocked_because is not None else super().close(*arguments, **options)

    def _on_blocked(self, reason: str = "") -> None:
        if self.blocked_because is None:
            self._blocked_at = time.monotonic()
        self.blocked_because = reason or "see its log"

    def _on_unblocked(self) -> None:
        self.blocked_because = None


class Channel(pyamqp.Channel):  # type: ignore[misc] # kombu has no types
    """A channel of such a connection."""

    _confirm_selected: bool

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Waits for an answer to the channel. Raises RecoverableConnectionError after 15 s."""
        if self.connection is None:
            raise RecoverableConnectionError("connection already closed")
        return self.connection.bounded(super().wait, *arguments, **options)

    def close(self, *arguments: Any, **options: Any) -> Any:
        """Says goodbye, unless RabbitMQ does not listen."""
        blocked = self.connection is not None and self.connection.blocked_because is not None
        return self.collect() if blocked else super().close(*arguments, **options)

    def confirm_select(self, *arguments: Any, **options: Any) -> Any:
        """Asks RabbitMQ to confirm each message. It numbers them from here on."""
        self._published = 0
        return super().confirm_select(*arguments, **options)

    def basic_publish_confirm(self, *arguments: Any, **options: Any) -> None:
        """Publishes, and waits until RabbitMQ has confirmed this message, not an earlier one.

        Raises Blocked, RecoverableConnectionError, and MessageNacked if RabbitMQ does not want the message.
        """
        options.pop("confirm_timeout", None)
        if not self._confirm_selected:
            self._confirm_selected = True
            self.confirm_select()
        self._basic_publish(*arguments, **options)
        self._published += 1
        answers: list[tuple[Any, int]] = []
        while not answers or answers[-1][1] < self._published:
            self.wait(
                [spec.Basic.Ack, spec.Basic.Nack],
                callback=lambda method, number, *_: answers.append((method, number)),
            )
        if answers[-1][0] == spec.Basic.Nack:
            raise MessageNacked("RabbitMQ does not take the message: the queue is full by its policy")

    def _basic_publish(self, *arguments: Any, **options: Any) -> Any:
        if self.connection is not None:
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0)  # the end of a block may have come
            self.connection.refuse_if_blocked()
        options["timeout"] = options.get("timeout") or PATIENCE_SECONDS
        return super()._basic_publish(*arguments, **options)

    basic_publish = _basic_publish


Connection.Channel = Channel


class Transport(pyamqp.Transport):  # type: ignore[misc] # kombu has no types
    """The transport of `amqp://`."""

    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):  # type: ignore[misc] # kombu has no types
    """The transport of `amqps://`."""

    Connection = Connection


def try_to_publish(connection: kombu.Connection, queues: Iterable[kombu.Queue]) -> None:
    """Declares the queues, as each publish does, and publishes a message that goes into none of them.

    Raises the connection's errors if RabbitMQ refuses that.
    """
    if connection.transport.driver_type != "amqp":
        return
    for queue in queues:
        queue(connection.default_channel).declare()
    kombu.Producer(connection.default_channel).publish({}, routing_key="worker_scheduler.check")
