"""Publishes a batch into a Redis or Valkey queue by one atomic script: all of it or none, at most once.

Celery and kombu render one message of the batch, so that every setting of theirs is honoured; what
differs from job to job is put into copies of its text. Only for plain list queues: `choice.py` knows
where this fits. https://docs.celeryq.dev/en/stable/internals/protocol.html has the message's form.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from worker_scheduler.publisher import GroupMessage, JobMessage
from worker_scheduler.publisher.broker import EPOCH_KEY, redis_client, unavailable
from worker_scheduler.publisher.group import apply_group

_MARKER_SECONDS = 8 * 24 * 3600
"""How long a batch that was pushed is remembered; longer than any dispatcher tries again."""

# KEYS: queue, marker, epoch. ARGV: seconds, a fresh epoch, then the messages.
# One script is one step for everybody else, and a Redis that is full refuses it at its first write:
# so the marker never stands without the messages, nor they without it. LPUSH takes its values through
# Lua's stack, which holds 8,000.
_PUSH = """
local epoch = redis.call('SET', KEYS[3], ARGV[2], 'NX', 'GET') or ARGV[2]
if redis.call('SET', KEYS[2], epoch, 'NX', 'EX', ARGV[1]) then
    for first = 3, #ARGV, 1000 do
        redis.call('LPUSH', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
    end
end
return epoch
"""


class RedisBulkPublisher:
    """One round trip a batch."""

    def __init__(self, app: Celery, url: str, key_prefix: str) -> None:
        self._app = app
        self._url = url
        self._prefix = key_prefix
        self._client: Redis = redis_client(url)
        self._push = self._client.register_script(_PUSH)
        self._templates: dict[tuple[object, ...], MessageTemplate] = {}

    def publish(self, group_message: GroupMessage) -> UUID | None:
        """Pushes the batch, or finds that it was pushed before. Raises StoreUnavailable.

        Trying again is safe: the marker tells whether the first try came through.
        """
        if not group_message.jobs:
            return None
        template = self._template(group_message)
        arguments: list[str | int] = [_MARKER_SECONDS, str(uuid4()), *template.render(group_message)]
        keys = [
            f"{self._prefix}{template.queue_key}",
            f"{self._prefix}worker_scheduler:batch:{group_message.marker}",
            f"{self._prefix}{EPOCH_KEY}",
        ]
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((RedisConnectionError, RedisTimeoutError)),
                wait=wait_exponential_jitter(multiplier=0.1, max=1),
                stop=stop_after_attempt(3),
                reraise=True,
            ):
                with attempt:
                    epoch = self._push(keys=keys, args=arguments)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return UUID(str(epoch))

    def _template(self, group_message: GroupMessage) -> MessageTemplate:
        """A template serves every batch of its run: only ids differ, unless the messages have a time."""
        job = group_message.jobs[0]
        key = (group_message.queue, job.partition_key, job.triggered_by, job.backfill_days)
        template = self._templates.get(key) or render_template(self._app, group_message.queue, job)
        if template.timeless:
            self._templates[key] = template
        return template


@dataclass(frozen=True)
class MessageTemplate:
    """A message's JSON text with gaps: ids of group, job and user; body, delivery tag, index.

    timeless: nothing in it depends on when it was rendered.
    """

    queue_key: str
    text: str
    body: str
    timeless: bool

    def render(self, group_message: GroupMessage) -> Iterator[str]:
        """One message a job, in their order."""
        # Unique like a random UUID, and cheaper: one random start a batch, and a count.
        tag = str(uuid4())[:28]
        group_id = str(group_message.group_id)
        for index, job in enumerate(group_message.jobs):
            body = base64.b64encode((self.body % job.user_id).encode()).decode()
            yield self.text % {
                "group_id": group_id,
                "job_id": job.job_id,
                "user_id": job.user_id,
                "body": body,
                "tag": f"{tag}{index:08x}",
                "index": index,
            }


def render_template(app: Celery, queue: str, like: JobMessage) -> MessageTemplate:
    """Lets Celery and kombu publish a job like this one into our hands, and cuts the gaps.

    Raises StoreUnavailable, since kombu connects even so.
    """
    job = replace(like, job_id=str(uuid4()), user_id=str(uuid4()))
    group_id = uuid4()
    try:
        queue_key, message = _captured(app, GroupMessage(group_id, queue, marker="", jobs=[job]))
    except (OperationalError, KombuError, RedisError, OSError) as error:
        raise unavailable(app.conf.broker_url, error.__cause__ or error) from error
    body = base64.b64decode(message["body"]).decode()
    timeless = message["headers"]["eta"] is message["headers"]["expires"] is None
    message["body"] = _gap("body")
    message["properties"]["delivery_tag"] = _gap("tag")
    message["headers"]["group_index"] = _gap("index")
    text = dumps(message).replace("%", "%%")
    for value, name in ((job.job_id, "job_id"), (job.user_id, "user_id"), (group_id, "group_id")):
        text = text.replace(str(value), f"%({name})s")
    for name in ("body", "tag"):
        text = text.replace(_gap(name), f"%({name})s")
    text = text.replace(f'"{_gap("index")}"', "%(index)d")
    return MessageTemplate(queue_key, text, body.replace("%", "%%").replace(job.user_id, "%s"), timeless)


def _gap(name: str) -> str:
    # Nothing that an operator may give can look like it: keys and triggers have no such characters.
    return f"<<{name}>>"


def _captured(app: Celery, group_message: GroupMessage) -> tuple[str, dict[str, Any]]:
    """The queue and the message that kombu would push, taken at `_put`, a virtual transport's last
    step.
    """
    taken: list[tuple[str, dict[str, Any]]] = []
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        channel._put = lambda queue, message, **_: taken.append((queue, message))
        apply_group(app, group_message, app.amqp.Producer(channel, auto_declare=False))
    ((queue, message),) = taken
    return queue, message
