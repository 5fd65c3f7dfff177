"""Makes the messages of `sync_user` small: leaves out the values that every Celery worker assumes.

A header, or an entry of the third part of the body, is left out if it has its default value. What a
deployment sets (a time limit, an expiry, a link) stays. Each job is its own root, no matter whether the
command, a task or reconcile publishes it. Messages of other tasks stay as Celery makes them. What remains
is what Celery's protocol 2 does not call optional:
https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

from typing import Any

from celery.app.amqp import AMQP, task_message

from worker_scheduler.publisher import SYNC_USER

_DEFAULTS: dict[str, Any] = {
    "shadow": None,
    "eta": None,
    "expires": None,
    "retries": 0,
    "timelimit": [None, None],
    "ignore_result": None,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
"""What `celery.worker.request.Request` and `celery.app.task.Context` use for a missing header."""

_FOR_READERS = {"argsrepr", "kwargsrepr", "origin"}
"""Texts about the body and the sender: monitors show them, no worker reads them."""


class SlimMessages(AMQP):  # type: ignore[misc] # Celery has no types
    """Makes messages as Celery does, then leaves out what is not needed."""

    def as_task_v2(self, task_id: str, name: str, *args: Any, **options: Any) -> task_message:
        """The message of a task; a small one if the task is `sync_user`."""
        message = super().as_task_v2(task_id, name, *args, **options)
        if name != SYNC_USER:
            return message
        defaults = {**_DEFAULTS, "ignore_result": self.app.conf.task_ignore_result or None}
        headers = {
            key: value
            for key, value in {**message.headers, "root_id": task_id, "parent_id": None}.items()
            if key not in _FOR_READERS and not (key in defaults and value in (None, defaults[key]))
        }
        # No result is sent, so nothing reads from `reply_to`.
        properties = {key: value for key, value in message.properties.items() if key != "reply_to"}
        positional, named, embedded = message.body
        body = (positional, named, {key: value for key, value in embedded.items() if value is not None})
        return message._replace(headers=headers, properties=properties, body=body)
