"""Publishes batches into a queue of Redis, each by one atomic script: all of it or none, at most once.

The script puts the ids of a batch into copies of one message's text, which `template.py` renders. Only
for plain list queues: `choice.py` knows where this fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from uuid import UUID, uuid4

from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from worker_scheduler.publisher import GroupMessage, JobMessage
from worker_scheduler.publisher.broker import EPOCH_KEY, redis_client, unavailable
from worker_scheduler.publisher.template import MessageTemplate, render

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


@dataclass(frozen=True)
class _Call:
    """One script, as Redis is to run it."""

    script: str
    keys: list[str]
    arguments: list[str | int]

    @property
    def sha(self) -> str:
        """The name under which Redis knows the script."""
        return sha1(self.script.encode(), usedforsecurity=False).hexdigest()


class RedisBulkPublisher:
    """One round trip, however many batches, to a server that knows the script."""

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
        calls = [self._call(group_message) for group_message in groups]
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((RedisConnectionError, RedisTimeoutError)),
                wait=wait_exponential_jitter(multiplier=0.1, max=1),
                stop=stop_after_attempt(3),
                reraise=True,
            ):
                with attempt:
                    epochs = self._run(calls)
        except (RedisError, OSError) as error:
            raise unavailable(self._url, error) from error
        return [UUID(str(epoch)) for epoch in epochs]

    def _run(self, calls: list[_Call]) -> list[object]:
        try:
            return self._execute(calls)
        except NoScriptError:  # the server has never seen it, or has restarted since
            for script in {call.script for call in calls}:
                self._client.script_load(script)
            return self._execute(calls)

    def _execute(self, calls: list[_Call]) -> list[object]:
        with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.evalsha(call.sha, len(call.keys), *call.keys, *call.arguments)
            epochs: list[object] = pipeline.execute()
            return epochs

    def _call(self, group_message: GroupMessage) -> _Call:
        template = self._template(group_message.message)
        keys = [
            f"{self._prefix}{template.queue_key}",
            f"{self._prefix}worker_scheduler:batch:{group_message.marker}",
            f"{self._prefix}{EPOCH_KEY}",
        ]
        # Unique like a random UUID, and cheaper: one random start a batch, and the index.
        tag = str(uuid4())[:28]
        return _Call(
            script=_push_script(template.gaps),
            keys=keys,
            arguments=[
                *(_MARKER_SECONDS, str(uuid4()), str(group_message.group_id), tag, group_message.jobs.text),
                *template.texts,
            ],
        )

    def _template(self, message: JobMessage) -> MessageTemplate:
        """A template serves every batch of its run: only ids differ, unless the messages have a time."""
        template = self._templates.get(message) or render(self._app, message)
        if template.timeless:
            self._templates[message] = template
        return template


@cache
def _push_script(gaps: tuple[str, ...]) -> str:
    """For the order of these gaps: one expression, which Lua fills in two thirds of the time that a loop
    over the gaps takes (1.3 and 2.0 µs a message, Valkey 9). One script a version of Celery, not a run.
    """
    first, *others = texts = [f"text{number}" for number in range(len(gaps) + 1)]
    filled = [f"{_VALUE[gap]} .. {text}" for gap, text in zip(gaps, others, strict=True)]
    return _PUSH.format(texts=", ".join(texts), message=" .. ".join([first, *filled]))
