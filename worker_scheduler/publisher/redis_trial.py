"""Tries on a Redis server what a tick does there, with keys of its own that are gone afterwards."""

from __future__ import annotations

from hashlib import sha1
from uuid import uuid4

from redis import Redis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from worker_scheduler.publisher.broker import EPOCH_KEY
from worker_scheduler.publisher.kombu_entries import UNACKED
from worker_scheduler.publisher.unreadable import wrong_type

NotAllowed = NoPermissionError
"""Raised if the user lacks a right for a command or a key."""

_SECONDS = 10
_QUEUES = ("scheduler", "daily", "backfill")

# KEYS: a key and a list of the trial, then keys that only have to be allowed: those of a tick.
_SCRIPT = """
local before = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'EX', ARGV[2])
redis.call('LPUSH', KEYS[2], ARGV[1])
redis.call('LLEN', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[2])
return before
"""


def write_and_remove(client: Redis, key_prefix: str) -> None:
    """Runs a script like the publisher's, and reads as reconcile does.

    Raises NotAllowed, or what Redis says when it takes no writes.
    """
    trial = f"{key_prefix}worker_scheduler:batch:check-{uuid4()}"
    keys = [trial, f"{trial}-list", f"{key_prefix}{EPOCH_KEY}", *(key_prefix + queue for queue in _QUEUES)]
    sha = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
    arguments = [*keys, str(uuid4()), str(_SECONDS)]
    try:
        try:
            client.evalsha(sha, len(keys), *arguments)
        except NoScriptError:
            client.script_load(_SCRIPT)
            client.evalsha(sha, len(keys), *arguments)
        client.hvals(trial)
    except ResponseError as error:
        if "NOPERM" in str(error) or "ACL" in str(error):  # within a script it is another error
            raise NotAllowed(str(error)) from error
        raise


def require_types(client: Redis, url: str, key_prefix: str) -> None:
    """Raises StoreUnavailable, which names the key, if another program has put something else where kombu
    keeps its queues; NotAllowed.
    """
    expected = dict.fromkeys(_QUEUES, "list")
    expected |= {f"_kombu.binding.{queue}": "set" for queue in _QUEUES}
    expected[f"{UNACKED}_index"] = "zset"
    found = wrong_type(client, url, {f"{key_prefix}{key}": name for key, name in expected.items()})
    if found is not None:
        raise found


def held_messages_are_hidden(client: Redis, key_prefix: str) -> bool:
    """Whether another program has put something else where Redis keeps the messages that workers hold.

    Raises NotAllowed.
    """
    try:
        client.hlen(f"{key_prefix}{UNACKED}")
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return True
    return False
