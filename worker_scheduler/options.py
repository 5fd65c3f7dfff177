"""The options of ticks and of prune, parsed and checked: the same for the CLI and for Celery tasks.

Every value may come as text (the command line) or as JSON (a task's arguments). What it does not
check is whether the users exist: that is asked of Postgres by `users.py`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from worker_scheduler import slots, values
from worker_scheduler.errors import BadInput
from worker_scheduler.redaction import escape_control_characters, show

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MAX_LOGIN_LENGTH = 255


def _items(value: object) -> list[str]:
    """A list, or comma-separated text, or a list of such texts, as one list without blanks."""
    if value is None:
        return []
    parts: Iterable[object] = [value] if isinstance(value, str) else value  # type: ignore[assignment]
    if not isinstance(parts, list | tuple):
        raise ValueError("is neither a list nor a text")
    found: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise ValueError(f"has the item {show(part)}, which is no text")
        found.extend(item.strip() for item in part.split(","))
    if "" in found:
        raise ValueError("has an empty item")
    return found


def _uuid(item: str) -> UUID:
    if not _UUID.fullmatch(item):  # uuid.UUID takes braces, urn: and dashes anywhere
        raise ValueError(f"has the item {show(item)}, which is no UUID")
    return UUID(item)


def _ids(value: object) -> list[UUID]:
    return list(dict.fromkeys(_uuid(item) for item in _items(value)))


def _logins(value: object) -> list[str]:
    logins = list(dict.fromkeys(_items(value)))
    for login in logins:
        if len(login) > _MAX_LOGIN_LENGTH or escape_control_characters(login) != login:
            raise ValueError(f"has the item {show(login)}, which is no login")
    return logins


def _date(value: object) -> datetime.date | None:
    if value is None or type(value) is datetime.date:
        return value
    if not isinstance(value, str) or not _ISO_DATE.fullmatch(value):
        raise ValueError("is no date")
    try:
        return datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError("is no date") from None


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _text(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError("is no text")
    return value


Options = TypeVar("Options", bound=BaseModel)
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str | None, BeforeValidator(_text)]


class TickOptions(BaseModel):
    """What both ticks take. None: the setting of that name decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enqueue_batch_size: values.BatchSize | None = None
    enqueue_sleep_seconds: values.Seconds | None = None
    max_enqueued_jobs: values.JobCount | None = None
    dry_run: Flag = False


class DailyOptions(TickOptions):
    """`scheduler daily`, `scheduler.daily_tick`."""

    date: Annotated[datetime.date | None, BeforeValidator(_date)] = None


class BackfillOptions(TickOptions):
    """`scheduler backfill`, `scheduler.backfill`. Without ids and logins: every user."""

    backfill_days: values.BackfillDays
    user_ids: Annotated[list[UUID], BeforeValidator(_ids)] | None = None
    github_logins: Annotated[list[str], BeforeValidator(_logins)] | None = None
    allow_missing: Flag = False
    partition_key: Text = None
    campaign: Text = None
    backfill_max_users: values.UserCount | None = None
    confirm: Flag = False

    @field_validator("user_ids", "github_logins")
    @classmethod
    def _not_an_empty_choice(cls, value: list[Any] | None) -> list[Any] | None:
        # An empty list that meant "everybody" would turn a script's bug into a run over all users.
        if value is not None and not value:
            raise ValueError("is empty")
        return value

    @field_validator("partition_key")
    @classmethod
    def _key_is_a_backfills(cls, value: str | None) -> str | None:
        if value is not None and value.startswith(slots.DAILY_PREFIX):
            raise ValueError("belongs to the daily run")
        if value is not None and not slots.PARTITION_KEY.fullmatch(value):
            raise ValueError("is no partition key")
        return value

    @field_validator("campaign")
    @classmethod
    def _campaign_fits_into_a_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not slots.CAMPAIGN.fullmatch(value):
            raise ValueError("is no campaign")
        if value is not None and info.data.get("partition_key") is not None:
            raise ValueError("goes into a key of ours, but --partition-key names another")
        return value

    @property
    def chosen(self) -> bool:
        """Whether users are named; else the tick is for everyone."""
        return self.user_ids is not None or self.github_logins is not None


class PruneOptions(BaseModel):
    """`scheduler prune`. older_than: days."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    older_than: values.Age
    dry_run: Flag = False


_ALLOWED = {
    "enqueue_batch_size": "a whole number from 1 to 5000",
    "enqueue_sleep_seconds": "a number of seconds from 0 to 3600",
    "max_enqueued_jobs": "a whole number from 1",
    "dry_run": "true or false",
    "date": "a day as YYYY-MM-DD",
    "backfill_days": "a whole number from 1 to 3650",
    "user_ids": "UUIDs, separated by commas",
    "github_logins": "logins, separated by commas",
    "allow_missing": "true or false",
    "partition_key": "[A-Za-z0-9._:-]{1,200}, not beginning with daily:",
    "campaign": "[A-Za-z0-9._-]{1,64}, without --partition-key",
    "backfill_max_users": "a whole number from 0",
    "confirm": "true or false",
    "older_than": "a number of days from 1 to 3650, such as 90d",
}


def require_partition_key(value: object) -> str:
    """The key of a partition of any kind. Raises BadInput."""
    if not isinstance(value, str) or not slots.PARTITION_KEY.fullmatch(value):
        raise BadInput(f"partition_key={show(value)}: allowed is [A-Za-z0-9._:-]{{1,200}}")
    return value


def parse_daily(given: Mapping[str, object]) -> DailyOptions:
    """Raises BadInput naming every fault at once."""
    return _parse(DailyOptions, given)


def parse_backfill(given: Mapping[str, object]) -> BackfillOptions:
    """Raises BadInput naming every fault at once."""
    return _parse(BackfillOptions, given)


def parse_prune(given: Mapping[str, object]) -> PruneOptions:
    """Raises BadInput naming every fault at once."""
    return _parse(PruneOptions, given)


def _parse(model: type[Options], given: Mapping[str, object]) -> Options:
    unknown = sorted(set(given) - set(model.model_fields))
    if unknown:
        allowed = ", ".join(sorted(model.model_fields))
        raise BadInput(f"unknown option {show(unknown[0])}: allowed are {allowed}")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        name_of = {name: "--" + name.replace("_", "-") for name in model.model_fields}
        raise BadInput("; ".join(values.explain(error, name_of, _ALLOWED))) from None
