"""Renders one message of a batch, as Celery and kombu would send it, and cuts gaps for what differs.

So every setting of theirs is honoured; what a copy with other ids could not do is an obstacle. It
publishes nothing. https://docs.celeryq.dev/en/stable/internals/protocol.html has the message's form.
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
from worker_scheduler.publisher import GroupMessage, JobMessage
from worker_scheduler.publisher.group import apply_group

_Captured = list[tuple[str, dict[str, Any]]]
"""Queues, and the messages that kombu would push into them."""

_NOBODY = str(UUID(int=0))
_INDEX = "<<index>>"
"""Nothing that an operator may give can look like it: keys and triggers have no such characters."""


@dataclass(frozen=True)
class MessageTemplate:
    """A message's text with gaps between `texts`: one gap less than texts, each by its name.

    timeless: nothing in it depends on when it was rendered.
    """

    queue_key: str
    texts: tuple[str, ...]
    gaps: tuple[str, ...]
    timeless: bool


def obstacle(app: Celery) -> str | None:
    """What Celery is set to do with messages of our task that a copy with other ids could not do; None
    where there is nothing. It connects to nothing.
    """
    # Of a task that is only a name to the app, the app knows no options.
    app.loader.import_default_modules()
    if not all(isinstance(route, MapRoute) for route in app.amqp.router.routes):
        return "task_routes has a function, which may route each message otherwise"
    probe = GroupMessage(uuid4(), "", JobMessage("daily", "", "", None), JobIds.of([(_NOBODY, _NOBODY)]))
    return _misfit(_captured(app, probe))


def render(app: Celery, message: JobMessage) -> MessageTemplate:
    """Lets Celery and kombu publish such a message into our hands, and cuts the gaps.

    It connects to nothing. Raises ConfigurationError where the message must not be copied.
    """
    job_id, user_id, group_id = str(uuid4()), str(uuid4()), uuid4()
    captured = _captured(app, GroupMessage(group_id, "", message, JobIds.of([(job_id, user_id)])))
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
    """Taken at `_put`, the last step of a virtual transport, and the first that differs between Redis and
    memory.
    """
    taken: _Captured = []
    with Connection("memory://", transport_options=app.conf.broker_transport_options) as connection:
        channel = connection.default_channel
        channel._put = lambda queue, message, **_: taken.append((queue, message))
        apply_group(app, group_message, app.amqp.Producer(channel, auto_declare=False))
    return taken


def _misfit(captured: _Captured) -> str | None:
    """Why this message's text must not be copied with other ids; None where it may."""
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
