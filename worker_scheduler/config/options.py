"""The options of ticks and of prune, parsed and checked: the same for the CLI and for Celery tasks.

Each value may be text (from the command line) or JSON (from a task's arguments). Whether the users exist
is not checked here: `ledger/users.py` asks Postgres.
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

from worker_scheduler import partition_keys
from worker_scheduler.config import values
from worker_scheduler.config.suggestion import closest
from worker_scheduler.config.values import Allowed
from worker_scheduler.errors import BadInput
from worker_scheduler.redaction import escape_control_characters, show

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MAX_LOGIN_LENGTH = 255
_LONGEST_ACTOR = 200
_LONGEST_REASON = 500


def _items(value: object) -> list[str]:
    """Returns the items of comma-separated text, or of a list of such texts, without surrounding blanks."""
    if value is None:
        return []
    parts: Iterable[object] = [value] if isinstance(value, str) else value  # type: ignore[assignment]
    if not isinstance(parts, list | tuple):
        raise ValueError("is neither a list nor text")
    found: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise ValueError(f"has the item {show(part)}, which must be text")
        found.extend(item.strip() for item in part.split(","))
    if "" in found:
        raise ValueError("has an empty item")
    return found


def _uuid(item: str) -> UUID:
    if not _UUID.fullmatch(item):  # uuid.UUID takes braces, urn: and dashes anywhere
        raise ValueError(f"has the item {show(item)}, which is not a UUID")
    return UUID(item)


def _ids(value: object) -> list[UUID]:
    return list(dict.fromkeys(_uuid(item) for item in _items(value)))


def _logins(value: object) -> list[str]:
    logins = list(dict.fromkeys(_items(value)))
    for login in logins:
        if len(login) > _MAX_LOGIN_LENGTH or escape_control_characters(login) != login:
            raise ValueError(f"has the item {show(login)}, which is not a valid login")
    return logins


def _date(value: object) -> datetime.date | None:
    if value is None or type(value) is datetime.date:
        return value
    if not isinstance(value, str) or not _ISO_DATE.fullmatch(value):
        raise ValueError("is not a valid date")
    try:
        return datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError("is not a valid date") from None


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _text(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError("must be text")
    return value


def _label(longest: int) -> BeforeValidator:
    """Reads text for people: blanks around it do not count, and no text is the same as none."""

    def read(value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise ValueError("must be text")
        if len(value.strip()) > longest:
            raise ValueError("is too long")
        return escape_control_characters(value.strip()) or None

    return BeforeValidator(read)


Options = TypeVar("Options", bound=BaseModel)
Flag = Annotated[bool, BeforeValidator(_flag), Allowed("true or false")]
Day = Annotated[datetime.date | None, BeforeValidator(_date), Allowed("a day as YYYY-MM-DD")]
Ids = Annotated[list[UUID], BeforeValidator(_ids), Allowed("UUIDs, separated by commas")]
Logins = Annotated[list[str], BeforeValidator(_logins), Allowed("logins, separated by commas")]
BackfillKey = Annotated[
    str | None,
    BeforeValidator(_text),
    Allowed(f"{partition_keys.PARTITION_KEY.pattern}, not beginning with {partition_keys.DAILY_PREFIX}"),
]
Campaign = Annotated[
    str | None,
    BeforeValidator(_text),
    Allowed(f"{partition_keys.CAMPAIGN.pattern}, without --partition-key"),
]
Actor = Annotated[
    str | None, _label(_LONGEST_ACTOR), Allowed(f"text of at most {_LONGEST_ACTOR} characters")
]
Reason = Annotated[
    str | None, _label(_LONGEST_REASON), Allowed(f"text of at most {_LONGEST_REASON} characters")
]


class TickOptions(BaseModel):
    """The options of every tick. None: the setting of the same name applies.

    actor, reason: who is behind the request, and why; for the history of requests only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enqueue_batch_size: values.BatchSize | None = None
    enqueue_sleep_seconds: values.Seconds | None = None
    max_enqueued_jobs: values.JobCount | None = None
    actor: Actor = None
    reason: Reason = None
    dry_run: Flag = False


class DailyOptions(TickOptions):
    """The options of `scheduler daily` and of the task `scheduler.daily_tick`."""

    date: Day = None


class BackfillOptions(TickOptions):
    """The options of `scheduler backfill` and of its task. Without ids and logins: every user."""

    backfill_days: values.BackfillDays
    user_ids: Ids | None = None
    github_logins: Logins | None = None
    allow_missing: Flag = False
    partition_key: BackfillKey = None
    campaign: Campaign = None
    backfill_max_users: values.UserCount | None = None
    confirm: Flag = False

    @field_validator("user_ids", "github_logins")
    @classmethod
    def _not_an_empty_choice(cls, value: list[Any] | None) -> list[Any] | None:
        # If an empty list meant every user, a script's bug would become a run over all users.
        if value is not None and not value:
            raise ValueError("is empty")
        return value

    @field_validator("partition_key")
    @classmethod
    def _key_is_a_backfills(cls, value: str | None) -> str | None:
        return None if value is None else partition_keys.check_backfill_key(value)

    @field_validator("campaign")
    @classmethod
    def _campaign_fits_into_a_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if info.data.get("partition_key") is not None:
            raise ValueError("cannot be combined with --partition-key")
        return partition_keys.check_campaign(value)

    @property
    def chosen(self) -> bool:
        """Whether users are named; otherwise the tick is for every user."""
        return self.user_ids is not None or self.github_logins is not None


class PruneOptions(BaseModel):
    """The options of `scheduler prune`, the ages in days."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    older_than: values.Age
    requests_older_than: values.Age = 730
    events_older_than: values.Age = 90
    dry_run: Flag = False


def require_partition_key(value: object, name: str = "partition_key") -> str:
    """Returns the key of a partition of any kind. name: what the caller calls it. Raises BadInput."""
    try:
        return partition_keys.check_key(value)
    except ValueError as error:
        allowed = partition_keys.PARTITION_KEY.pattern
        raise BadInput(f"{name}={show(value)} {error}: allowed is {allowed}") from None


def parse_daily(given: Mapping[str, object]) -> DailyOptions:
    """Returns the parsed options. Raises BadInput, which names every fault at once."""
    return validated(DailyOptions, given)


def parse_backfill(given: Mapping[str, object]) -> BackfillOptions:
    """Returns the parsed options. Raises BadInput, which names every fault at once."""
    return validated(BackfillOptions, given)


def parse_prune(given: Mapping[str, object]) -> PruneOptions:
    """Returns the parsed options. Raises BadInput, which names every fault at once."""
    return validated(PruneOptions, given)


def validated(model: type[Options], given: Mapping[str, object]) -> Options:
    """Returns the parsed options of a model. Raises BadInput, which names every fault at once."""
    unknown = sorted(set(given) - set(model.model_fields))
    if unknown:
        allowed = ", ".join(sorted(model.model_fields))
        meant = closest(unknown[0], model.model_fields)
        guess = "" if meant is None else f" (did you mean {meant}?)"
        raise BadInput(f"unknown option {show(unknown[0])}{guess}: allowed are {allowed}")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise BadInput("; ".join(values.explain(error, model, _option))) from None


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
