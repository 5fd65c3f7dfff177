"""The options of the verbs that steer runs, parsed and checked: the same for the CLI and for tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from worker_scheduler.config import options, values
from worker_scheduler.config.values import Allowed
from worker_scheduler.redaction import escape_control_characters

_LONGEST_REASON = 500
_LONGEST_ACTOR = 200
_DURATION = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LATEST_YEAR = 9000
"""A parked job waits until the year 9999."""


def _until(value: object) -> datetime | timedelta | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("must be text")
    if match := _DURATION.fullmatch(value):
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("is neither a time nor a duration") from None
    if time.tzinfo is None:
        raise ValueError("has no offset from UTC")
    if time.year > _LATEST_YEAR:
        raise ValueError("is too far away")
    return time


def _line(longest: int) -> BeforeValidator:
    def check(value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, str):
            raise ValueError("must be text")
        if not value.strip() or len(value) > longest or escape_control_characters(value) != value:
            raise ValueError("is not a short line of text")
        return value

    return BeforeValidator(check)


Reason = Annotated[
    str | None, _line(_LONGEST_REASON), Allowed(f"a line of up to {_LONGEST_REASON} characters")
]
Actor = Annotated[
    str | None, _line(_LONGEST_ACTOR), Allowed(f"a line of up to {_LONGEST_ACTOR} characters")
]
Until = Annotated[
    datetime | timedelta | None,
    BeforeValidator(_until),
    Allowed("a duration such as 2h, or a time with an offset such as 2026-11-28T18:00+01:00"),
]


Only = Annotated[
    Literal["failed", "skipped", "cancelled"],
    Allowed("failed, skipped or cancelled"),
]


class VerbOptions(BaseModel):
    """The options of every verb. actor: who is behind it, None for the user who runs the command."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    reason: Reason = None
    actor: Actor = None


class PauseOptions(VerbOptions):
    """The options of pause."""

    until: Until = None


class RetryOptions(VerbOptions):
    """The options of retry."""

    only: Only
    error_like: Reason = None
    user_ids: options.Ids | None = None
    limit: values.UserCount | None = None
    confirm: options.Flag = False


def parse_retry(given: Mapping[str, object]) -> RetryOptions:
    """Returns the parsed options. Raises BadInput, which names every fault at once."""
    return options.validated(RetryOptions, given)


def parse_verb(given: Mapping[str, object]) -> VerbOptions:
    """Returns the parsed options. Raises BadInput, which names every fault at once."""
    return options.validated(VerbOptions, given)


def parse_pause(given: Mapping[str, object]) -> PauseOptions:
    """Returns the parsed options. Raises BadInput, which names every fault at once."""
    return options.validated(PauseOptions, given)
