"""The environment as one frozen, validated object; the only place that reads variables of ours.

It checks what can be known without a connection; `scheduler check` asks the servers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from celery.schedules import ParseException, crontab
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker_scheduler import urls, values
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.leases import Lease

PublisherName = Literal["auto", "group", "redis-bulk"]
CatchUp = Literal["latest", "all", "none"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_IDENTIFIER = r'(?:[A-Za-z_][A-Za-z0-9_$]{0,62}|"[^"\x00]{1,63}")'
_RELATION = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})?")
_HANDLER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _postgres(value: SecretStr) -> SecretStr:
    return SecretStr(urls.postgres_url(value.get_secret_value()))


def _redis(value: SecretStr) -> SecretStr:
    return SecretStr(urls.redis_url(value.get_secret_value()))


def _broker(value: SecretStr | None) -> SecretStr | None:
    return None if value is None else SecretStr(urls.broker_url(value.get_secret_value()))


def _cron(value: str) -> str:
    fields = " ".join(value.split())  # crontab takes single blanks only
    try:
        crontab.from_string(fields)
    except (ParseException, ValueError) as error:
        raise ValueError("is no cron expression") from error
    return fields


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("is no time zone") from None
    return value


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if value is not None and not pattern.fullmatch(value):
            raise ValueError(f"is no {what}")
        return value

    return AfterValidator(check)


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _setting(default: Any, description: str, allowed: str) -> Any:
    """A field whose description the README shows and whose `allowed` the error line shows."""
    return Field(default, description=description, json_schema_extra={"allowed": allowed})


class Settings(BaseSettings):
    """Every variable of worker_scheduler; a field's name in capitals is its variable."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,  # `BACKFILL_CONFIRM=` in a Procfile or .env means: not set
        extra="ignore",
        hide_input_in_errors=True,
    )

    database_url: Annotated[SecretStr, AfterValidator(_postgres)] = _setting(
        ...,
        "PostgreSQL: the ledger, and the users",
        "postgresql://user@host:5432/name (or postgres://, postgresql+psycopg://)",
    )
    redis_url: Annotated[SecretStr, AfterValidator(_redis)] = _setting(
        ...,
        "Redis ≥ 7.0 or Valkey: RedBeat's clock, and the broker unless CELERY_BROKER_URL names another",
        "redis://host:6379/0 or rediss://host:6379/0",
    )
    celery_broker_url: Annotated[SecretStr | None, AfterValidator(_broker)] = _setting(
        None, "another broker than REDIS_URL (Celery's own variable)", "a broker URL of Celery's"
    )
    redis_key_prefix: Annotated[str, _matching(re.compile(r"[A-Za-z0-9._:-]{0,64}"), "key prefix")] = (
        _setting(
            "",
            "put before every key in Redis, where several systems share one",
            "[A-Za-z0-9._:-]{0,64}",
        )
    )
    users_relation: Annotated[str, _matching(_RELATION, "relation name")] = _setting(
        "users", "the table or view of users, read only", "name or schema.name"
    )
    max_enqueued_jobs: values.JobCount = _setting(
        10_000, "a tick that selects more users than this is refused", "a whole number from 1"
    )
    backfill_max_users: values.UserCount = _setting(
        50, "a backfill of more users than this must be confirmed", "a whole number from 0"
    )
    backfill_confirm: bool = _setting(False, "1: backfills of any size count as confirmed", "1 or 0")
    enqueue_batch_size: values.BatchSize = _setting(
        200, "jobs a batch, that is a Celery group", "a whole number from 1 to 5000"
    )
    enqueue_sleep_seconds: values.Seconds = _setting(
        0.2, "seconds between two batches", "a number of seconds from 0 to 3600"
    )
    max_queue_depth: values.JobCount | None = _setting(
        None,
        "dispatch waits while a queue of jobs holds as many messages, unacknowledged ones included",
        "a whole number from 1; not set: no bound; Redis and Valkey only",
    )
    dispatch_concurrency: values.Concurrency = _setting(
        1,
        "dispatchers of a run at once: the tick, and as many `scheduler.dispatch` tasks as make the number",
        "a whole number from 1 to 64",
    )
    scheduler_daily_lock_id: values.LockId = _setting(
        0x7761766501, "names the lock of daily ticks", "1 to 2^63-1, decimal or 0x…"
    )
    scheduler_backfill_lock_id: values.LockId = _setting(
        0x7761766502, "names the lock of backfills", "1 to 2^63-1, decimal or 0x…"
    )
    scheduler_lock_enabled: bool = _setting(
        True, "0: ticks take no lock (they stay correct, but may do work twice)", "1 or 0"
    )
    daily_tick_cron: Annotated[str, AfterValidator(_cron)] = _setting(
        "0 2 * * *", "when Beat rings the daily tick", "five cron fields, such as '0 2 * * *'"
    )
    scheduler_timezone: Annotated[str, AfterValidator(_timezone)] = _setting(
        "UTC", "the time zone of DAILY_TICK_CRON", "an IANA name, such as Europe/London"
    )
    publisher: Annotated[PublisherName, BeforeValidator(_lower)] = _setting(
        "auto",
        "how batches are published; auto: redis-bulk where it fits, else group",
        "auto, group or redis-bulk",
    )
    daily_catch_up: Annotated[CatchUp, BeforeValidator(_lower)] = _setting(
        "latest",
        "which missed days get a run after downtime; the others are noted as MISSED",
        "latest, all or none",
    )
    daily_catch_up_window: values.Days = _setting(
        7, "days: a day missed longer ago gets no run", "a number of days from 0 to 366, such as 7 or 7d"
    )
    reconcile_interval_seconds: values.Interval = _setting(
        60, "seconds between two rings of scheduler.reconcile", "a whole number from 1 to 3600"
    )
    lease_seconds: values.LeaseSeconds = _setting(
        45,
        "seconds without a heartbeat after which a tick or a worker counts as dead",
        "a number of seconds from 1 to 60",
    )
    message_grace_seconds: values.Seconds = _setting(
        120,
        "seconds after its last batch before a run's messages are looked for in the broker",
        "a number of seconds from 0 to 3600",
    )
    visibility_timeout_seconds: values.Visibility = _setting(
        600,
        "seconds after which Redis gives a message to another worker, if its job has not ended",
        "a whole number from 2 to 86400",
    )
    sync_max_attempts: values.Attempts = _setting(
        3, "attempts at a job before it counts as FAILED", "a whole number from 1 to 1000"
    )
    sync_handler: Annotated[str | None, _matching(_HANDLER, "handler")] = _setting(
        None, "worker only: the function that does a job", "package.module:function"
    )
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = _setting(
        "INFO", "how much is logged", "DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )

    @field_validator("scheduler_backfill_lock_id")
    @classmethod
    def _locks_differ(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("scheduler_daily_lock_id"):
            raise ValueError(
                "is SCHEDULER_DAILY_LOCK_ID too, so the daily tick would wait behind a backfill"
            )
        return value

    @property
    def lease(self) -> Lease:
        """Of a tick's lock, of a run that is worked on, of a job that runs."""
        return Lease(self.lease_seconds)

    @property
    def batch_lease(self) -> Lease:
        """Of a batch that is being published: shorter, so that whoever takes over from a dead tick
        finds its batch free.
        """
        return Lease(self.lease_seconds * 2 / 3)

    @property
    def broker_url(self) -> str:
        """The broker's URL, with its password: CELERY_BROKER_URL, else REDIS_URL."""
        return (self.celery_broker_url or self.redis_url).get_secret_value()

    @property
    def broker_is_redis(self) -> bool:
        """Whether the broker is a single Redis or Valkey server."""
        return self.broker_url.partition("://")[0] in urls.REDIS_SCHEMES


ALLOWED: Mapping[str, str] = {
    name: str(field.json_schema_extra["allowed"])
    for name, field in Settings.model_fields.items()
    if isinstance(field.json_schema_extra, dict)
}


def load() -> Settings:
    """The settings of this process. Raises ConfigurationError naming every fault at once."""
    try:
        return Settings()
    except ValidationError as error:
        name_of = {name: name.upper() for name in Settings.model_fields}
        raise ConfigurationError(values.explain(error, name_of, dict(ALLOWED))) from None
