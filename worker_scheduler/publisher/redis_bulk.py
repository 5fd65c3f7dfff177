"""Publishes batches to Redis, each by one atomic script: the whole batch or nothing, at most once.

The script puts the ids of a batch into copies of one message's text, which `template.py` renders. It works
for plain list queues only: `choice.py` decides whether it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.publisher import GroupMessage, SharedFields
from worker_scheduler.publisher.broker import EPOCH_KEY, redis_client, unavailable
from worker_scheduler.publisher.template import MessageTemplate, render
from worker_scheduler.publisher.unreadable import LUA_EPOCH_PATTERN, read_epoch, wrong_type

_MARKER_SECONDS = 8 * 24 * 3600
"""How long a batch that was pushed is remembered: longer than any dispatcher repeats it."""

# KEYS: queue, marker, epoch. ARGV: the marker's seconds, a fresh epoch, the group's id, the delivery
# tags' beginning, the ids (see job_ids.py), and then the template's texts.
# No other command runs while a script does, and a Redis whose memory is full refuses a script at its first
# write. So either both the marker and the messages are there, or neither. LPUSH takes its values from Lua's
# stack, which holds 8,000; so a thousand go at once.
# Before the first write come the checks whose failure would leave a marker without messages: LLEN raises an
# error if the queue's key is not a list, and of an epoch that is not one the caller makes an error.
_PUSH = """
local epoch = redis.call('SET', KEYS[3], ARGV[2], 'NX', 'GET') or ARGV[2]
redis.call('LLEN', KEYS[1])
if not string.find(epoch, '^{epoch}$') then return epoch end
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
"""The Lua expression that fills a gap of that name."""


@dataclass(frozen=True)
class _Call:
    """One run of the script in Redis."""

    script: str
    keys: list[str]
    arguments: list[str | int]

    @property
    def sha(self) -> str:
        """The name under which Redis knows the script."""
        return sha1(self.script.encode(), usedforsecurity=False).hexdigest()


class RedisBulkPublisher:
    """Publishes any number of batches in one round trip, if the server knows the script."""

    repeatable = True

    def __init__(self, app: Celery, url: str, key_prefix: str) -> None:
        self._app = app
        self._url = url
        self._prefix = key_prefix
        self._epoch_key = f"{key_prefix}{EPOCH_KEY}"
        self._client: Redis = redis_client(url)
        self._templates: dict[SharedFields, MessageTemplate] = {}

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        """Pushes each batch, unless its marker says that it was pushed before. Raises StoreUnavailable.

        So an attempt can be repeated: batches that the first attempt has pushed are left out.
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
                    epochs = self._run_scripts(calls)
        except (RedisError, OSError) as error:
            raise self._refusal(calls, error) from error
        return [read_epoch(self._url, self._epoch_key, epoch) for epoch in epochs]

    def _refusal(self, calls: list[_Call], error: RedisError | OSError) -> StoreUnavailable:
        """The error that says why Redis did not take the batches; it names a key of another type."""
        named = None
        if "WRONGTYPE" in str(error):
            queues = {call.keys[0]: "list" for call in calls}
            with suppress(RedisError, OSError):
                named = wrong_type(self._client, self._url, {**queues, self._epoch_key: "string"})
        return named or unavailable(self._url, error)

    def _run_scripts(self, calls: list[_Call]) -> list[object]:
        try:
            return self._execute(calls)
        except NoScriptError:  # the server has never seen it, or has restarted
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
        template = self._template(group_message.shared)
        keys = [
            f"{self._prefix}{template.queue_key}",
            f"{self._prefix}worker_scheduler:batch:{group_message.marker}",
            self._epoch_key,
        ]
        # As unique as a random UUID, and cheaper: one random start per batch, then the index.
        tag = str(uuid4())[:28]
        return _Call(
            script=_push_script(template.gaps),
            keys=keys,
            arguments=[
                *(
                    _MARKER_SECONDS,
                    str(uuid4()),
                    str(group_message.group_id),
                    tag,
                    group_message.job_ids.text,
                ),
                *template.texts,
            ],
        )

    def _template(self, shared: SharedFields) -> MessageTemplate:
        """The template of a run's messages; kept for later batches, unless it contains the time."""
        template = self._templates.get(shared) or render(self._app, shared)
        if template.timeless:
            self._templates[shared] = template
        return template


@cache
def _push_script(gaps: tuple[str, ...]) -> str:
    """The script for gaps in this order. It fills them in one expression, which takes Lua two thirds of the
    time of a loop over the gaps (1.3 and 2.0 µs per message, Valkey 9). The order depends on the version of
    Celery, not on the run.
    """
    first, *others = texts = [f"text{number}" for number in range(len(gaps) + 1)]
    filled = [f"{_VALUE[gap]} .. {text}" for gap, text in zip(gaps, others, strict=True)]
    return _PUSH.format(
        epoch=LUA_EPOCH_PATTERN, texts=", ".join(texts), message=" .. ".join([first, *filled])
    )
