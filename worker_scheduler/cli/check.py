"""`scheduler check`: one line a part, and what to do about each fault. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from kombu import Connection as BrokerConnection
from redis.exceptions import RedisError

from worker_scheduler.cli.output import counted, print_line
from worker_scheduler.errors import ConfigurationError, SchedulerError, StoreUnavailable
from worker_scheduler.ledger import schema
from worker_scheduler.ledger import users as users_sql
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.users import UsersRelation
from worker_scheduler.publisher.broker import OpaqueBroker, reason_of
from worker_scheduler.publisher.choice import choose
from worker_scheduler.redaction import show_url
from worker_scheduler.settings import Settings, load

_OLDEST_POSTGRES = 15
_OLDEST_REDIS = 7
"""SET with both NX and GET, by which a tick knows the broker's data again; Valkey has always had it."""


@dataclass(frozen=True)
class Finding:
    """One line of the check. status: what the command should end with because of it."""

    part: str
    text: str
    status: int = 0


def check() -> int:
    """Configuration, Postgres, schema, Redis, broker and beat settings: one line each."""
    worst = 0
    for finding in _findings():
        print_line(f"{'ok   ' if not finding.status else 'FAULT'} {finding.part}: {finding.text}")
        worst = max(worst, finding.status)
    return worst


def _findings() -> Iterator[Finding]:
    try:
        settings = load()
    except ConfigurationError as error:
        yield from (Finding("configuration", fault, error.exit_status) for fault in error.faults)
        return
    yield Finding("configuration", "every variable parses")
    database = Database(settings.database_url.get_secret_value(), size=1)
    try:
        yield _try("Postgres", lambda: _postgres(database))
        yield _try("schema", lambda: _schema(database))
        yield _try("users", lambda: _users(database, settings))
    finally:
        database.dispose()
    redis_url = settings.redis_url.get_secret_value()
    yield from _redis("Redis", redis_url)
    broker = _try("broker", lambda: _broker(settings))
    yield broker
    another = settings.broker_is_redis and settings.broker_url != redis_url
    if another and broker.status != StoreUnavailable.exit_status:
        yield from _redis("broker's Redis", settings.broker_url)
    yield _try("beat", lambda: _beat(settings))
    yield _worker(settings)


def _try(part: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(part, ask())
    except SchedulerError as error:
        return Finding(part, str(error), error.exit_status)


def _postgres(database: Database) -> str:
    with database.autocommit() as connection:
        version = connection.dialect.server_version_info or (0,)
    if int(version[0]) < _OLDEST_POSTGRES:
        raise ConfigurationError(
            [f"PostgreSQL {version[0]} is too old: {_OLDEST_POSTGRES} to 18 are supported, upgrade it"]
        )
    if database.is_read_only():
        raise StoreUnavailable(
            f"PostgreSQL {version[0]} answers, but takes no writes: it is a standby, or was set"
            " default_transaction_read_only; let DATABASE_URL name the primary"
        )
    return f"PostgreSQL {version[0]} answers"


def _schema(database: Database) -> str:
    with database.autocommit() as connection:
        schema.require_current(connection)
    return f"tables are at version {schema.newest_version()}"


def _users(database: Database, settings: Settings) -> str:
    relation = UsersRelation(settings.users_relation)
    with database.autocommit() as connection:
        users_sql.require_relation(connection, relation)
        number = users_sql.count(connection, relation)
    return (
        f"{relation.name} has {counted(number, 'user')}; a tick takes at most {settings.max_enqueued_jobs}"
    )


def _redis(part: str, url: str) -> Iterator[Finding]:
    client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, decode_responses=True)
    try:
        info: dict[str, Any] = client.info()
    except (RedisError, OSError) as error:
        text = f"{show_url(url)} is unavailable: {reason_of(error)}"
        yield Finding(part, text, StoreUnavailable.exit_status)
        return
    finally:
        client.close()
    yield redis_version(part, info)
    yield _eviction(f"{part} eviction", str(info.get("maxmemory_policy", "")))


def redis_version(part: str, info: Mapping[str, object]) -> Finding:
    """Whether the server that says this by INFO knows every command of a tick."""
    if "valkey_version" in info:
        return Finding(part, f"Valkey {info['valkey_version']} answers")
    version = str(info.get("redis_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < _OLDEST_REDIS:
        return Finding(
            part,
            f"Redis {version} is too old, no tick could work: Redis {_OLDEST_REDIS}.0 or newer, or Valkey,"
            " is needed; upgrade it",
            ConfigurationError.exit_status,
        )
    return Finding(part, f"Redis {version} answers")


def _eviction(part: str, policy: str) -> Finding:
    if policy in {"", "noeviction"}:
        return Finding(part, f"maxmemory-policy is {policy or 'not shown to us'}")
    return Finding(
        part,
        f"maxmemory-policy is {policy}, so a full Redis throws messages away:"
        " set it with `CONFIG SET maxmemory-policy noeviction`, or in the provider's panel",
        ConfigurationError.exit_status,
    )


def _broker(settings: Settings) -> str:
    from worker_scheduler.celery_app import app  # noqa: PLC0415 - only here is the app needed

    connection: BrokerConnection
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            if settings.broker_is_redis:
                connection.default_channel.client.ping()
    except Exception as error:
        place = show_url(settings.broker_url)
        raise StoreUnavailable(f"{place} is unavailable: {reason_of(error)}") from error
    if settings.max_queue_depth is not None and not settings.broker_is_redis:
        raise ConfigurationError(
            [
                f"MAX_QUEUE_DEPTH={settings.max_queue_depth} does nothing here: only Redis and Valkey show"
                " how deep a queue is; unset it"
            ]
        )
    choice = choose(app, settings, OpaqueBroker())
    return (
        f"{show_url(settings.broker_url)} answers; queues scheduler, daily, backfill;"
        f" publisher {choice.name} ({choice.reason})"
    )


def _beat(settings: Settings) -> str:
    from worker_scheduler.celery_app import app  # noqa: PLC0415

    conf = app.conf
    if conf.redbeat_lock_timeout < 3 * conf.beat_max_loop_interval:
        raise ConfigurationError(
            ["redbeat_lock_timeout must be at least 3 times beat_max_loop_interval: mend celeryconfig.py"]
        )
    return (
        f"rings scheduler.daily_tick at '{settings.daily_tick_cron}' in {settings.scheduler_timezone};"
        # Its lock runs out, and the one that waits looks for it.
        f" a killed Beat is replaced within {conf.redbeat_lock_timeout + conf.beat_max_loop_interval} s"
    )


def _worker(settings: Settings) -> Finding:
    # Not imported: check runs where the handler's secrets need not be.
    if settings.sync_handler is None:
        return Finding("worker", "SYNC_HANDLER is not set here; workers of daily or backfill need it")
    return Finding("worker", f"jobs are done by {settings.sync_handler}")
