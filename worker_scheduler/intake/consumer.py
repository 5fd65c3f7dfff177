"""Celery's consumer of task messages: a message that is no task is set aside, and the worker goes on.

It also goes on, after a pause, if RabbitMQ refuses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from amqp.exceptions import AccessRefused, AMQPError
from celery.worker import state
from celery.worker.consumer import consumer
from celery.worker.state import maybe_shutdown
from kombu.message import Message
from vine import promise

from worker_scheduler.intake.gate import BROKER_ERRORS, Gate
from worker_scheduler.intake.readable import Unreadable, require_task

_PAUSE_AFTER_REFUSAL_SECONDS = 5.0
"""Celery pauses only after errors of which kombu expects an end. After a refusal by RabbitMQ it would ask
several times a second, each with a line.
"""


class Consumer(consumer.Consumer):  # type: ignore[misc] # Celery has no types
    """The consumer of a worker; Celery's setting `worker_consumer` names it."""

    def create_task_handler(self, promise: Any = promise) -> Callable[[Message], Any]:
        """The callback for each message of the worker's queues."""
        take = super().create_task_handler(promise)

        def on_task_received(message: Message) -> None:
            semaphore = self.controller.semaphore
            free = semaphore.value if semaphore else 0
            try:
                require_task(message, self.app)
                take(message)
            except BROKER_ERRORS:
                raise
            except Unreadable as fault:
                self._set_aside(message, fault)
            except Exception as error:  # noqa: BLE001 - whatever Celery raises, the worker goes on
                if _forget(message) and semaphore and semaphore.value < free:
                    semaphore.release()  # the place in the pool that the message had taken
                self._set_aside(message, f"{type(error).__name__}: {error}")

        return on_task_received

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Logs the error, and pauses if it is a refusal of the login or of the virtual host."""
        super().on_connection_error_before_connected(exc)
        if isinstance(exc, AMQPError):
            _pause()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Logs the error, and pauses if the user lacks a right. After other errors jobs may be running."""
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, AccessRefused):
            _pause()

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Also the remote control's messages come here."""
        self._set_aside(message, f"its body cannot be decoded: {exc}")

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Sets the message aside."""
        self._set_aside(message, "it is not a task's message")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Sets the message aside: newer workers may know the task."""
        self._set_aside(message, f"no task of this worker has the name {message.headers['task']}")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Sets the message aside."""
        self._set_aside(message, f"it is not a valid task's message: {exc}")

    def _set_aside(self, message: Message, reason: object) -> None:
        gate: Gate = self.app.amqp.gate
        gate.remove(message, message.queue, reason)


def _pause() -> None:
    """Waits, unless the worker is told to stop."""
    until = time.monotonic() + _PAUSE_AFTER_REFUSAL_SECONDS
    while time.monotonic() < until:
        maybe_shutdown()
        time.sleep(0.2)


def _forget(message: Message) -> bool:
    """Takes the message's request out of the worker's state, where it would hold a place; was it there?"""
    found = [request for request in tuple(state.requests.values()) if request.message is message]
    for request in found:
        state.task_ready(request)
    return bool(found)
