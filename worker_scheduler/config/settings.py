"""The environment as one frozen, validated object. Nothing else reads the scheduler's variables.

Everything that needs no connection is checked here; `scheduler check` asks the servers for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal
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

from worker_scheduler.config import urls, values
from worker_scheduler.config.postgres_url import postgres_url
from worker_scheduler.config.suggestion import closest
from worker_scheduler.config.values import Allowed
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.leases import Lease

PublisherName = Literal["auto", "group", "redis-bulk"]
CatchUp = Literal["latest", "all", "none"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_KEY_PREFIX = re.compile(r"[A-Za-z0-9._:-]{0,64}")
_IDENTIFIER = r'(?:[A-Za-z_][A-Za-z0-9_$]{0,62}|"[^"\x00]{1,63}")'
_RELATION = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})?")
_CLASS = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_ALL_OR_NONE = {"none", "all"}
_HANDLER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _checked_postgres_url(value: SecretStr) -> SecretStr:
    return SecretStr(postgres_url(value.get_secret_value()))


def _checked_redis_url(value: SecretStr) -> SecretStr:
    return SecretStr(urls.redis_url(value.get_secret_value()))


def _checked_broker_url(value: SecretStr | None) -> SecretStr | None:
    return None if value is None else SecretStr(urls.broker_url(value.get_secret_value()))


def _cron(value: str) -> str:
    fields = " ".join(value.split())  # crontab accepts only single blanks
    try:
        crontab.from_string(fields)
    except (ParseException, ValueError) as error:
        raise ValueError("is not a valid cron expression") from error
    return fields


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a known time zone") from None
    return value


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if value is not None and not pattern.fullmatch(value):
            raise ValueError(f"is not a valid {what}")
        return value

    return AfterValidator(check)


def _classes(value: object) -> object:
    """`none`, `all`, or names between commas, in one spelling."""
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",")]
    if value.strip().lower() in _ALL_OR_NONE:
        return value.strip().lower()
    if any(name.lower() in _ALL_OR_NONE or not _CLASS.fullmatch(name) for name in names):
        raise ValueError("is not a list of classes")
    return ",".join(names)


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


_ALIKE = 0.88
"""How similar to a variable's name another must be to count as misspelt. One wrong letter in the shortest
name, REDIS_URL, gives 0.89; Celery's own CELERY_BROKER_READ_URL and our CELERY_BROKER_URL give 0.87.
"""
Switch = Annotated[bool, Allowed("1 or 0")]


class Settings(BaseSettings):
    """Every variable of worker_scheduler. A field's variable is its name in capitals."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,  # `BACKFILL_CONFIRM=` in a Procfile or .env means: not set
        extra="ignore",
        hide_input_in_errors=True,
    )

    database_url: Annotated[
        SecretStr,
        AfterValidator(_checked_postgres_url),
        Allowed("postgresql://user@host:5432/name (or postgres://, postgresql+psycopg://)"),
    ] = Field(description="PostgreSQL: the ledger, and the users")
    redis_url: Annotated[
        SecretStr,
        AfterValidator(_checked_redis_url),
        Allowed("redis://host:6379/0 or rediss://host:6379/0"),
    ] = Field(
        description="Redis ≥ 7.0 or Valkey: RedBeat's clock, and the broker unless CELERY_BROKER_URL names"
        " another"
    )
    celery_broker_url: Annotated[
        SecretStr | None,
        AfterValidator(_checked_broker_url),
        Allowed("a broker URL that Celery accepts"),
    ] = Field(None, description="the broker, if it is not REDIS_URL (Celery's own variable)")
    redis_key_prefix: Annotated[str, _matching(_KEY_PREFIX, "key prefix"), Allowed(_KEY_PREFIX.pattern)] = (
        Field("", description="put before every key in Redis, if several systems share the server")
    )
    users_relation: Annotated[
        str, _matching(_RELATION, "relation name"), Allowed("name or schema.name")
    ] = Field("users", description="the table or view of users, read only")
    max_enqueued_jobs: values.JobCount = Field(
        10_000, description="a tick that selects more users than this is refused"
    )
    backfill_max_users: values.UserCount = Field(
        50, description="a backfill of more users than this must be confirmed"
    )
    backfill_confirm: Switch = Field(False, description="1: backfills of any size count as confirmed")
    enqueue_batch_size: values.BatchSize = Field(200, description="jobs per batch, which is a Celery group")
    enqueue_sleep_seconds: values.Seconds = Field(0.2, description="seconds between two batches")
    max_queue_depth: Annotated[
        values.JobCount | None,
        Allowed("a whole number from {low}; not set: no bound; Redis and Valkey only"),
    ] = Field(
        None,
        description="dispatch waits while a job queue holds this many messages, including unacknowledged",
    )
    dispatch_concurrency: values.Concurrency = Field(
        1, description="dispatchers per run: the tick itself, and `scheduler.dispatch` tasks for the rest"
    )
    scheduler_daily_lock_id: values.LockId = Field(
        0x7761766501, description="identifies the lock of daily ticks"
    )
    scheduler_backfill_lock_id: values.LockId = Field(
        0x7761766502, description="identifies the lock of backfills"
    )
    scheduler_lock_enabled: Switch = Field(
        True, description="0: ticks take no lock (they stay correct, but may do work twice)"
    )
    daily_tick_cron: Annotated[
        str, AfterValidator(_cron), Allowed("five cron fields, such as '0 2 * * *'")
    ] = Field("0 2 * * *", description="when Beat triggers the daily tick")
    scheduler_timezone: Annotated[
        str, AfterValidator(_timezone), Allowed("an IANA name, such as Europe/London")
    ] = Field("UTC", description="the time zone of DAILY_TICK_CRON, and of the dates of daily runs")
    publisher: Annotated[PublisherName, BeforeValidator(_lower), values.one_of(PublisherName)] = Field(
        "auto", description="how batches are published; auto: redis-bulk if it fits, otherwise group"
    )
    daily_catch_up: Annotated[CatchUp, BeforeValidator(_lower), values.one_of(CatchUp)] = Field(
        "latest",
        description="which of the days that came due during downtime get a run; the others become MISSED",
    )
    daily_catch_up_window: values.Days = Field(
        7, description="a day that came due more than this many days ago gets no run"
    )
    reconcile_interval_seconds: values.Interval = Field(
        60, description="seconds between two triggers of scheduler.reconcile by Beat"
    )
    lease_seconds: values.LeaseSeconds = Field(
        45, description="seconds without a heartbeat after which a tick or a worker counts as dead"
    )
    message_grace_seconds: values.Seconds = Field(
        120,
        description="seconds after a job's message was published before reconcile takes it for lost",
    )
    visibility_timeout_seconds: values.Visibility = Field(
        600,
        description="seconds after which Redis gives a message to another worker, if its job has not ended",
    )
    sync_max_attempts: values.Attempts = Field(
        3, description="attempts at a job before it counts as FAILED"
    )
    job_timeout_seconds: values.TimeLimit = Field(
        60 * 60, description="seconds after which a job that still runs is ended; 0: none"
    )
    sync_retry_on: Annotated[
        str,
        BeforeValidator(_classes),
        Allowed("none, all, or classes between commas, such as JobTimeout,my_app.errors.Busy"),
    ] = Field("none", description="workers only: the handler's errors after which a job is tried again")
    sync_handler: Annotated[
        str | None, _matching(_HANDLER, "handler"), Allowed("package.module:function")
    ] = Field(None, description="workers only: the function that does a job")
    worker_remote_control: Switch = Field(
        True,
        description="0: workers ignore `celery inspect`, `celery control` and every other sender of such"
        " commands",
    )
    log_level: Annotated[LogLevel, BeforeValidator(_upper), values.one_of(LogLevel)] = Field(
        "INFO", description="how much is logged"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        # Python has a lone surrogate for each byte of a variable that is not UTF-8. No driver can send one.
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("is not UTF-8") from None
        return value

    @field_validator("scheduler_backfill_lock_id")
    @classmethod
    def _locks_differ(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("scheduler_daily_lock_id"):
            raise ValueError(
                "is also the value of SCHEDULER_DAILY_LOCK_ID, so the daily tick would wait for a backfill"
            )
        return value

    @property
    def lease(self) -> Lease:
        """The lease of a tick's lock, of a run that is being worked on, and of a running job."""
        return Lease(self.lease_seconds)

    @property
    def batch_lease(self) -> Lease:
        """The lease of a batch that is being published. It is shorter, so the process that takes over
        from a dead tick finds that tick's batch free.
        """
        return Lease(self.lease_seconds * 2 / 3)

    @property
    def broker_url(self) -> str:
        """CELERY_BROKER_URL, or REDIS_URL if it is not set; with the password."""
        return (self.celery_broker_url or self.redis_url).get_secret_value()

    @property
    def broker_is_redis(self) -> bool:
        """Whether the broker is a single Redis or Valkey server."""
        return self.broker_url.partition("://")[0] in urls.REDIS_SCHEMES


def load() -> Settings:
    """Returns the settings of this process. Raises ConfigurationError, which names every fault at once."""
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(values.explain(error, Settings, str.upper)) from None


def misspelt(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the names in `environment` that look like a misspelt variable, each with the one meant.

    If the variable that a name looks like is set, too, the name is taken for another program's: an
    application may well have both REDIS_URL and REDIS_URLS.
    """
    variables = set(map(str.upper, Settings.model_fields))
    unset = variables - {name.upper() for name, value in environment.items() if value}
    others = sorted(name for name in environment if name.upper() not in variables)
    return {name: meant for name in others if (meant := closest(name.upper(), unset, _ALIKE))}
