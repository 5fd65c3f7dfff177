"""Celery's consumer of task messages: a message that is no task is set aside, and the worker goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker import state
from celery.worker.consumer import consumer
from kombu.message import Message
from vine import promise

from worker_scheduler.intake.gate import BROKER_ERRORS, Gate
from worker_scheduler.intake.readable import Unreadable, require_task


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


def _forget(message: Message) -> bool:
    """Takes the message's request out of the worker's state, where it would hold a place; was it there?"""
    found = [request for request in tuple(state.requests.values()) if request.message is message]
    for request in found:
        state.task_ready(request)
    return bool(found)
