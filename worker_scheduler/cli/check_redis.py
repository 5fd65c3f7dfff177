"""The part of `scheduler check` that asks a Redis or Valkey server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import redis
from redis.exceptions import RedisError

from worker_scheduler.cli.finding import Finding, Severity, fault
from worker_scheduler.config.settings import Settings
from worker_scheduler.errors import ConfigurationError, StoreUnavailable
from worker_scheduler.publisher import redis_trial
from worker_scheduler.publisher.broker import broker_reason, redis_client
from worker_scheduler.publisher.kombu_entries import UNACKED
from worker_scheduler.redaction import show, show_url

_OLDEST_REDIS = 7
"""The first with SET … NX GET, which a tick needs to recognise the broker epoch. Valkey always had it."""


def check_redis(part: str, url: str, key_prefix: str) -> Iterator[Finding]:
    """Version, mode, eviction policy, and whether this user may write what a tick writes."""
    with redis_client(url) as client:
        try:
            info: dict[str, Any] = client.info()
        except (RedisError, OSError) as error:
            text = f"{show_url(url)} is unavailable: {broker_reason(error)}"
            yield fault(part, text, StoreUnavailable)
            return
        version = redis_version(part, info)
        yield version
        yield _eviction(f"{part} eviction", str(info.get("maxmemory_policy", "")))
        obstacle = _mode(part, info)
        if obstacle is not None:
            yield obstacle
        elif version.severity is Severity.OK:
            yield from _trial(part, client, url, key_prefix)


def redis_version(part: str, info: Mapping[str, object]) -> Finding:
    """Returns whether the server has every command of a tick, as a finding. info: its answer to INFO."""
    if "valkey_version" in info:
        return Finding(part, f"Valkey {info['valkey_version']} answers")
    version = str(info.get("redis_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < _OLDEST_REDIS:
        return fault(
            part,
            f"Redis {version} is too old for ticks: upgrade it to Redis {_OLDEST_REDIS}.0 or newer, or use"
            " Valkey",
            ConfigurationError,
        )
    return Finding(part, f"Redis {version} answers")


def _eviction(part: str, policy: str) -> Finding:
    if policy in {"", "noeviction"}:
        return Finding(part, f"maxmemory-policy is {policy or 'not visible to this user'}")
    return fault(
        part,
        f"maxmemory-policy is {policy}, so a full Redis throws messages away:"
        " set it with `CONFIG SET maxmemory-policy noeviction`, or in the provider's panel",
        ConfigurationError,
    )


def _mode(part: str, info: Mapping[str, object]) -> Finding | None:
    """A fault if the server is one of several that only work together."""
    if str(info.get("cluster_enabled", "")) == "1":
        return fault(
            part,
            "the server is a part of a Redis Cluster, which Celery cannot use: name a single server"
            " (cluster-enabled no)",
            ConfigurationError,
        )
    if str(info.get("role", "master")) not in {"master", "primary"}:
        return fault(
            part,
            f"the server is a replica of {info.get('master_host')}:{info.get('master_port')}, and what is"
            " written there is lost: let the URL name the primary",
            StoreUnavailable,
        )
    return None


def _trial(part: str, client: redis.Redis, url: str, key_prefix: str) -> Iterator[Finding]:
    try:
        redis_trial.write_and_remove(client, key_prefix)
        redis_trial.require_types(client, url, key_prefix)
        if redis_trial.held_messages_are_hidden(client, key_prefix):
            key = show(f"{key_prefix}{UNACKED}")
            text = f"the key {key} is not a hash, so nobody sees the messages that workers hold: delete it"
            yield Finding(part, text, Severity.WARNING)
    except redis_trial.NotAllowed as error:
        yield fault(
            part,
            f"this user may not do what a tick does ({broker_reason(error)}): docs/security.md has the ACL",
            ConfigurationError,
        )
    except StoreUnavailable as error:
        yield fault(part, str(error), StoreUnavailable)
    except (RedisError, OSError) as error:
        yield fault(part, f"the server takes no writes: {broker_reason(error)}", StoreUnavailable)


def key_prefix_of_broker(settings: Settings) -> Iterator[Finding]:
    """A warning if the broker is a Redis of a kind for which the prefix and our own looks are not used."""
    scheme = settings.broker_url.partition("://")[0]
    if settings.broker_is_redis or scheme not in {"redis+socket", "sentinel", "rediss+sentinel"}:
        return
    prefix = settings.redis_key_prefix
    if prefix:
        yield Finding(
            "broker",
            f"REDIS_KEY_PREFIX={show(prefix)} is not put before the queues of {scheme}://, so two systems"
            " that share this server take each other's messages: use redis:// or rediss://",
            Severity.WARNING,
        )
    yield Finding(
        "broker",
        f"with {scheme}:// reconcile cannot see what the broker holds, and finds no lost message: use"
        " redis:// or rediss://",
        Severity.WARNING,
    )
