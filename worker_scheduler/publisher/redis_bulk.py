"""Publishes batches into a queue of Redis, each by one atomic script: all of it or none, at most once.

Celery and kombu render one message, so that every setting of theirs is honoured; the script puts the
ids of the others into copies of its text. Only for plain list queues: `choice.py` knows where this
fits. https://docs.celeryq.dev/en/stable/internals/protocol.html has the message's form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from kombu.utils.json import dumps
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from worker_scheduler.job_ids import JobIds
from worker_scheduler.publisher import GroupMessage, JobMessage
from worker_scheduler.publisher.broker import EPOCH_KEY, redis_client, unavailable
from worker_scheduler.publisher.group import apply_group

_MARKER_SECONDS = 8 * 24 * 3600
"""How long a batch that was pushed is remembered; longer than any dispatcher tries again."""

# KEYS: queue, marker, epoch. ARGV: the marker's seconds, a fresh epoch, the group's id, the delivery
# tags' beginning, the ids (see job_ids.py), and then the template's texts.
# One script is one step for everybody else, and a Redis that is full refuses it at its first write:
# so the marker never stands without the messages, nor they without it. LPUSH takes its values through
# Lua's stack, which holds 8,000.
_PUSH = """
local epoch = redis.call('SET', KEYS[3], ARGV[2], 'NX', 'GET') or ARGV[2]
if redis.call('SET', KEYS[2], epoch, 'NX', 'EX', ARGV[1]) then
    local sub, format, group, tag, ids = string.sub, string.format, ARGV[3], ARGV[4], ARGV[5]
    local {texts} = unpack(ARGV, 6)
    local messages = {{}}
    for index = 0, #ids / 72 - 1 do
        local start = 72 * index
        local job, user = sub(ids, start + 1, start + 36), sub(ids, start + 37, start + 72)
        messages[index % 1000 + 1] = {message}
        if index % 1000 == 999 then
            redis.call('LPUSH', KEYS[1], unpack(messages))
            messages = {{}}
        end
    end
    if #messages > 0 then redis.call('LPUSH', KEYS[1], unpack(messages)) end
end
return epoch
"""
_VALUE = {
    "job": "job",
    "user": "user",
    "group": "group",
    "index": "index",
    "tag": "tag .. format('%08x', index)",
}
"""What fills a gap of that name, in Lua."""


class RedisBulkPublisher:
    """One round trip, however many batches."""

    repeatable = True

    def __init__(self, app: Celery, url: str, key_prefix: str) -> None:
        self._app = app
        self._url = url
        self._prefix = key_prefix
        self._client: Redis = redis_client(url)
        self._templates: dict[JobMessage, MessageTemplate] = {}

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        """Pushes each batch, or finds that it was pushed before. Raises StoreUnavailable.

        Trying again is safe: the markers tell what of the first try came through.
        """
        scripts = [self._script(group_message) for group_message in groups]
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((RedisConnectionError, RedisTimeoutError)),
                wait=wait_exponential_jitter(multiplier=0.1, max=1),
                stop=stop_after_attempt(3),
                reraise=True,
            ):
                with attempt:
                    epochs = self._run(scripts)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return [UUID(str(epoch)) for epoch in epochs]

    def _run(self, scripts: list[tuple[Script, list[str], list[str | int]]]) -> list[object]:
        with self._client.pipeline(transaction=False) as pipeline:
            for push, keys, arguments in scripts:
                push(keys, arguments, client=pipeline)
            epochs: list[object] = pipeline.execute()
            return epochs

    def _script(self, group_message: GroupMessage) -> tuple[Script, list[str], list[str | int]]:
        """The script, its keys and its arguments."""
        template = self._template(group_message.message)
        keys = [
            f"{self._prefix}{template.queue_key}",
            f"{self._prefix}worker_scheduler:batch:{group_message.marker}",
            f"{self._prefix}{EPOCH_KEY}",
        ]
        # Unique like a random UUID, and cheaper: one random start a batch, and the index.
        tag = str(uuid4())[:28]
        push = self._client.register_script(template.script)
        return (
            push,
            keys,
            [
                *(_MARKER_SECONDS, str(uuid4()), str(group_message.group_id), tag, group_message.jobs.text),
                *template.texts,
            ],
        )

    def _template(self, message: JobMessage) -> MessageTemplate:
        """A template serves every batch of its run: only ids differ, unless the messages have a time."""
        template = self._templates.get(message) or render_template(self._app, message)
        if template.timeless:
            self._templates[message] = template
        return template


@dataclass(frozen=True)
class MessageTemplate:
    """A message's text with gaps between `texts`: one gap less than texts, each by its name.

    timeless: nothing in it depends on when it was rendered.
    """

    queue_key: str
    texts: tuple[str, ...]
    gaps: tuple[str, ...]
    timeless: bool

    @property
    def script(self) -> str:
        """For the order of these gaps: one expression, which Lua fills in a third of the time that a
        loop over the gaps takes.
        """
        first, *others = texts = [f"text{number}" for number in range(len(self.texts))]
        filled = [f"{_VALUE[gap]} .. {text}" for gap, text in zip(self.gaps, others, strict=True)]
        return _PUSH.format(texts=", ".join(texts), message=" .. ".join([first, *filled]))


def render_template(app: Celery, message: JobMessage) -> MessageTemplate:
    """Lets Celery and kombu publish such a message into our hands, and cuts the gaps.

    Raises StoreUnavailable, since kombu connects even so.
    """
    job_id, user_id, group_id = str(uuid4()), str(uuid4()), uuid4()
    like = GroupMessage(group_id, "", message, JobIds.of([(job_id, user_id)]))
    try:
        queue_key, rendered = _captured(app, like)
    except (OperationalError, KombuError, RedisError, OSError) as error:
        raise unavailable(app.conf.broker_url, error.__cause__ or error) from error
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


_INDEX = "<<index>>"
"""Nothing that an operator may give can look like it: keys and triggers have no such characters."""


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
