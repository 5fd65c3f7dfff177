"""The gate between the broker and those who consume: what passes, and what is set aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.message import Message
from redis.exceptions import RedisError

from worker_scheduler.intake.set_aside import SetAside
from worker_scheduler.intake.unpack import unpack

BROKER_ERRORS = (RedisError, AMQPError, OperationalError, OSError, MemoryError)
"""Not the fault of a message. KeyError is, though kombu counts it among the errors of a connection."""


class Gate:
    """One per app. Every consumer of the app's connections is behind it."""

    def __init__(self, app: Celery, set_aside: SetAside) -> None:
        self._app = app
        self._set_aside = set_aside

    def unpack(self, body: str | bytes, method: object) -> bytes:
        """The body without its compression. Raises Unreadable."""
        return unpack(body, method, self._app.conf.task_compression)

    def set_aside(self, queue: str, raw: str | bytes, reason: object) -> None:
        """Notes a message that is in no queue any more. Never raises."""
        self._set_aside.add(queue, raw, reason)

    def remove(self, message: Message, queue: str, reason: object) -> None:
        """Sets a message aside, then removes it from its queue. Raises the errors of a lost connection."""
        self.set_aside(queue, raw_text(message), reason)
        if not message.acknowledged:
            message.reject(requeue=False)

    def guarded(
        self, callback: Callable[[Message], Any], queue: str, no_ack: bool
    ) -> Callable[[Message], Any]:
        """The callback of a consumer, in which no message ends the process."""

        def guard(message: Message) -> Any:
            message.queue = queue  # what the message itself says may be another one
            try:
                return callback(message)
            except BROKER_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a consumer raises, the process goes on
                reason = f"{type(error).__name__}: {error}"
                if no_ack:
                    self.set_aside(queue, raw_text(message), reason)
                else:
                    self.remove(message, queue, reason)

        return guard


def raw_text(message: Message) -> str:
    """The message as the broker holds it; one of AMQP, which is binary, as JSON."""
    raw = getattr(message, "_raw", None)
    if raw is None:
        body = message.body
        raw = {
            "headers": message.headers,
            "content-type": message.content_type,
            "body": bytes(body).decode(errors="backslashreplace") if not isinstance(body, str) else body,
        }
    try:
        return json.dumps(raw, default=repr)
    except (TypeError, ValueError, RecursionError) as error:
        return f"(cannot be shown: {type(error).__name__})"
