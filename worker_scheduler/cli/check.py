"""`scheduler check`: one line per part, and what to do about each fault.

It reads, and writes two keys in Redis that it removes again.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import suppress

from kombu import Connection as BrokerConnection

from worker_scheduler import wiring
from worker_scheduler.cli import shared
from worker_scheduler.cli.check_ledger import check_rights, check_settings, check_users
from worker_scheduler.cli.check_redis import check_redis, key_prefix_of_broker
from worker_scheduler.cli.finding import Finding, Severity, ask, ask_all, fault
from worker_scheduler.cli.output import print_line
from worker_scheduler.config.settings import Settings, load, misspelt
from worker_scheduler.errors import ConfigurationError, SchedulerError, StoreUnavailable
from worker_scheduler.ledger import schema
from worker_scheduler.ledger.database import Database
from worker_scheduler.publisher.broker import OpaqueBroker, broker_reason
from worker_scheduler.publisher.choice import choose
from worker_scheduler.publisher.rabbitmq import try_to_publish
from worker_scheduler.publisher.redis_broker import RedisBroker
from worker_scheduler.redaction import show_url

_OLDEST_POSTGRES = 15


def check() -> int:
    """Check variables, Postgres, tables, users, Redis, broker, Beat and worker: one line each."""
    worst = 0
    for finding in _findings():
        print_line(f"{finding.severity:<5} {finding.part}: {finding.text}")
        worst = max(worst, finding.status)
    return worst


def _findings() -> Iterator[Finding]:
    try:
        settings = load()
        importlib.import_module("worker_scheduler.celery_app")  # refuses variables that only Celery reads
    except ConfigurationError as error:
        yield from (fault("configuration", text, error) for text in error.faults)
        yield from _misspelt_variables()
        return
    yield Finding("configuration", "every variable parses")
    yield from _misspelt_variables()
    with shared.ledger(settings) as database:
        postgres = ask("Postgres", lambda: _check_postgres(database))
        yield postgres
        if postgres.severity is Severity.OK:
            yield from _check_clock(database, settings)
            yield from ask_all("Postgres", lambda: check_settings(database))
        tables = ask("schema", lambda: _check_schema(database))
        yield tables
        if tables.severity is Severity.OK:
            yield from ask_all("rights", lambda: check_rights(database))
        yield from ask_all("users", lambda: check_users(database, settings))
    redis_url = settings.redis_url.get_secret_value()
    redis = list(check_redis("Redis", redis_url, settings.redis_key_prefix))
    yield from redis
    broker = ask("broker", lambda: _check_broker(settings))
    yield broker
    yield from key_prefix_of_broker(settings)
    another = settings.broker_is_redis and settings.broker_url != redis_url
    if another and broker.status != StoreUnavailable.exit_status:
        redis = list(check_redis("broker's Redis", settings.broker_url, settings.redis_key_prefix))
        yield from redis
    if settings.broker_is_redis and all(f.severity is not Severity.FAULT for f in (broker, *redis)):
        yield from ask_all("broker", lambda: _check_epoch(settings))
    yield ask("beat", lambda: _check_beat(settings))
    yield _check_worker(settings)


def _misspelt_variables() -> Iterator[Finding]:
    for name, meant in misspelt(os.environ).items():  # never with its value: it may be a password
        text = f"{name} is not a variable of the scheduler and is ignored. Did you mean {meant}?"
        yield Finding("configuration", text, Severity.WARNING)


def _check_postgres(database: Database) -> str:
    with database.autocommit() as connection:
        version = connection.dialect.server_version_info or (0,)
    if int(version[0]) < _OLDEST_POSTGRES:
        raise ConfigurationError(
            [f"PostgreSQL {version[0]} is too old: upgrade it, {_OLDEST_POSTGRES} to 18 are supported"]
        )
    if database.is_read_only():
        raise StoreUnavailable(
            f"PostgreSQL {version[0]} answers, but takes no writes: it is a standby, or"
            " default_transaction_read_only is on; let DATABASE_URL name the primary"
        )
    return f"PostgreSQL {version[0]} answers"


def _check_clock(database: Database, settings: Settings) -> Iterator[Finding]:
    """Nothing if Postgres does not answer: that is a finding of its own."""
    with suppress(SchedulerError):
        ahead = wiring.host_ahead_seconds(database)
        if abs(ahead) > wiring.allowed_clock_difference(settings.lease):
            side = "ahead of" if ahead > 0 else "behind"
            yield Finding(
                "clock",
                f"this host is {abs(ahead):.1f} s {side} Postgres: let NTP set both, or Beat triggers and"
                " Redis gives messages back at the wrong time",
                Severity.WARNING,
            )
            return
        yield Finding("clock", f"this host differs from Postgres by {abs(ahead):.1f} s")


def _check_schema(database: Database) -> str:
    with database.autocommit() as connection:
        schema.require_current(connection)
    return f"tables are at version {schema.NEWEST_VERSION}"


def _check_broker(settings: Settings) -> str:
    from worker_scheduler.celery_app import app  # noqa: PLC0415 - only here is the app needed

    connection: BrokerConnection
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            if settings.broker_is_redis:
                connection.default_channel.client.ping()
            try_to_publish(connection, app.amqp.queues.values())
    except Exception as error:
        place = show_url(settings.broker_url)
        raise StoreUnavailable(f"{place} is unavailable: {broker_reason(error)}") from error
    if settings.max_queue_depth is not None and not settings.broker_is_redis:
        raise ConfigurationError(
            [
                f"MAX_QUEUE_DEPTH={settings.max_queue_depth} has no effect: only Redis and Valkey tell"
                " how deep a queue is; unset it"
            ]
        )
    choice = choose(app, settings, OpaqueBroker())
    return (
        f"{show_url(settings.broker_url)} answers; queues scheduler, daily, backfill;"
        f" publisher {choice.name} ({choice.reason})"
    )


def _check_epoch(settings: Settings) -> Iterator[Finding]:
    """Nothing if the broker epoch can be read, or is not set yet."""
    RedisBroker(settings.broker_url, settings.redis_key_prefix).require_readable_epoch()
    yield from ()


def _check_beat(settings: Settings) -> str:
    from worker_scheduler.celery_app import app  # noqa: PLC0415

    conf = app.conf
    if conf.redbeat_lock_timeout < 3 * conf.beat_max_loop_interval:
        raise ConfigurationError(
            ["redbeat_lock_timeout must be at least 3 times beat_max_loop_interval: fix celeryconfig.py"]
        )
    return (
        f"triggers scheduler.daily_tick at '{settings.daily_tick_cron}' in {settings.scheduler_timezone};"
        # Its lock has to expire first, and the waiting Beat has to look at it.
        f" a killed Beat is replaced within {conf.redbeat_lock_timeout + conf.beat_max_loop_interval} s"
    )


def _check_worker(settings: Settings) -> Finding:
    # The handler is not imported: where check runs, the handler's secrets may be missing.
    if settings.sync_handler is None:
        return Finding(
            "worker", "SYNC_HANDLER is not set here; workers of the queues daily and backfill need it"
        )
    return Finding("worker", f"{settings.sync_handler} does the jobs")
