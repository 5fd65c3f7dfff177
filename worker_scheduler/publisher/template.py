"""Renders one message of a batch as Celery and kombu would send it, with gaps for the values that differ.

So the message follows every setting of Celery and kombu. A setting that a copy with other ids cannot follow
is an obstacle. Nothing is published here. The form of a message:
https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from celery.app.routes import MapRoute
from kombu import Connection
from kombu.utils.json import dumps

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.job_ids import JobIds
from worker_scheduler.publisher import GroupMessage, SharedFields
from worker_scheduler.publisher.group import apply_group

_Captured = list[tuple[str, dict[str, Any]]]
"""Pairs of a queue and a message that kombu would push into it."""

_NOBODY = str(UUID(int=0))
_INDEX = "<<index>>"
"""No field of a message can look like it: keys, ids and `triggered_by` have no such characters."""


@dataclass(frozen=True)
class MessageTemplate:
    """A message's text with gaps: `gaps` names the gap after each of the `texts` but the last.

    timeless: whether nothing in it depends on the time at which it was rendered.
    """

    queue_key: str
    texts: tuple[str, ...]
    gaps: tuple[str, ...]
    timeless: bool


def obstacle(app: Celery) -> str | None:
    """The setting of Celery that a copy with other ids could not follow; None if there is none.

    It opens no connection.
    """
    # Until the module of a task is imported, the app does not know the options of the task.
    app.loader.import_default_modules()
    if not all(isinstance(route, MapRoute) for route in app.amqp.router.routes):
        return "task_routes has a function, which may send each message to another queue"
    probe = GroupMessage(uuid4(), "", SharedFields("daily", "", "", None), JobIds.of([(_NOBODY, _NOBODY)]))
    return _misfit(_captured(app, probe))


def render(app: Celery, shared: SharedFields) -> MessageTemplate:
    """Renders a message with these fields, and cuts the gaps.

    It opens no connection. Raises ConfigurationError if the message must not be copied.
    """
    job_id, user_id, group_id = str(uuid4()), str(uuid4()), uuid4()
    captured = _captured(app, GroupMessage(group_id, "", shared, JobIds.of([(job_id, user_id)])))
    if reason := _misfit(captured):
        raise ConfigurationError([f"redis-bulk cannot publish: {reason}; set PUBLISHER=group"])
    ((queue_key, rendered),) = captured
    headers = rendered["headers"]
    timeless = headers.get("eta") is headers.get("expires") is None
    headers["group_index"] = _INDEX
    names = {
        job_id: "job",
        user_id: "user",
        str(group_id): "group",
        rendered["properties"]["delivery_tag"]: "tag",
        f'"{_INDEX}"': "index",
    }
    parts = re.split(f"({'|'.join(names)})", dumps(rendered))
    return MessageTemplate(queue_key, tuple(parts[::2]), tuple(names[gap] for gap in parts[1::2]), timeless)


def _captured(app: Celery, group_message: GroupMessage) -> _Captured:
    """The messages that Celery and kombu would publish.

    They are caught at `_put`, the last step of a virtual transport, and the first one in which Redis and
    memory differ.
    """
    taken: _Captured = []
    with Connection("memory://", transport_options=app.conf.broker_transport_options) as connection:
        channel = connection.default_channel
        channel._put = lambda queue, message, **_: taken.append((queue, message))
        apply_group(app, group_message, app.amqp.Producer(channel, auto_declare=False))
    return taken


def _misfit(captured: _Captured) -> str | None:
    """Why this message's text must not be copied with other ids; None if it may."""
    if len(captured) != 1:
        return f"a message goes to {len(captured)} queues"
    ((_, message),) = captured
    if (message["content-type"], message["content-encoding"]) != ("application/json", "utf-8"):
        return "messages are not JSON"
    if "compression" in message["headers"]:
        return "messages are compressed"
    if message["properties"].get("priority"):
        return "messages have a priority"
    return None
