"""The types of an operator's values: how each is parsed, its bounds, and the words that state them.

The variables (`settings.py`) and the options (`options.py`) share them, so both have the same bounds and
the same words. Errors, `--help` and the documents take their words from `allowed` and `bounds`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from worker_scheduler.leases import LONGEST_LEASE_SECONDS
from worker_scheduler.redaction import show, show_url

MAX_BIGINT = 2**63 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")


@dataclass(frozen=True)
class Allowed:
    """The words for what a type allows. {low} and {high} stand for the bounds of the type's Field."""

    words: str


def _no_bool(value: object) -> object:
    # JSON's `true` would otherwise count as the number 1.
    if isinstance(value, bool):
        raise ValueError("is a boolean, not a number")
    return value


def _whole_number(value: object) -> object:
    _no_bool(value)
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value.strip()):
            raise ValueError("is not a whole number")
        return int(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("is not a whole number")
    return value


def _lock_id(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", value.strip()):
        return int(value, 16)
    return _whole_number(value)


def _days(value: object) -> object:
    return _whole_number(value.strip().removesuffix("d") if isinstance(value, str) else value)


def _none_or_a_second(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("is less than a second")
    return value


_BETWEEN = Allowed("a whole number from {low} to {high}")
_AT_LEAST = Allowed("a whole number from {low}")
_SECONDS = Allowed("a number of seconds from {low} to {high}")

BatchSize = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=5000), _BETWEEN]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=3600, allow_inf_nan=False), _SECONDS]
LeaseSeconds = Annotated[
    float, BeforeValidator(_no_bool), Field(ge=1, le=LONGEST_LEASE_SECONDS, allow_inf_nan=False), _SECONDS
]
TimeLimit = Annotated[
    float,
    BeforeValidator(_no_bool),
    AfterValidator(_none_or_a_second),
    Field(ge=0, le=604_800, allow_inf_nan=False),
    Allowed("0, or a number of seconds from 1 to {high}"),
]
JobCount = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=MAX_BIGINT), _AT_LEAST]
UserCount = Annotated[int, BeforeValidator(_whole_number), Field(ge=0, le=MAX_BIGINT), _AT_LEAST]
BackfillDays = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=3650), _BETWEEN]
Days = Annotated[
    int,
    BeforeValidator(_days),
    Field(ge=0, le=366),
    Allowed("a number of days from {low} to {high}, such as 7 or 7d"),
]
Age = Annotated[
    int,
    BeforeValidator(_days),
    Field(ge=1, le=3650),
    Allowed("a number of days from {low} to {high}, such as 90d"),
]
Concurrency = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=64), _BETWEEN]
Visibility = Annotated[int, BeforeValidator(_whole_number), Field(ge=2, le=86_400), _BETWEEN]
Interval = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=3600), _BETWEEN]
Attempts = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=1000), _BETWEEN]
LockId = Annotated[
    int, BeforeValidator(_lock_id), Field(ge=1, le=MAX_BIGINT), Allowed("{low} to {high}, decimal or 0x…")
]


def one_of(literal: object) -> Allowed:
    """Returns the words for a Literal: `latest, all or none`."""
    *others, last = get_args(literal)
    return Allowed(f"{', '.join(others)} or {last}")


def allowed(kind: object) -> str:
    """Returns what a type or a model's field allows: `a whole number from 1 to 5000`."""
    words = next(part.words for part in _metadata(kind) if isinstance(part, Allowed))
    low, high = _limits(kind)
    return words.replace("{low}", low).replace("{high}", high)


def bounds(kind: object) -> str:
    """Returns the bounds of a type or of a model's field, in short: `1 to 5000`, or `from 1`."""
    low, high = _limits(kind)
    return f"{low} to {high}" if high.isdecimal() else f"from {low}"


def _limits(kind: object) -> tuple[str, str]:
    low = high = ""
    for part in _metadata(kind):
        # Field(ge=, le=) leaves one object for each bound.
        if hasattr(part, "ge"):
            low = str(part.ge)
        elif hasattr(part, "le"):
            high = "2^63-1" if part.le == MAX_BIGINT else str(part.le)
    return low, high


def _metadata(kind: object) -> Iterator[object]:
    """Yields what a type's Annotated holds, the outermost first, also inside `Annotated[...] | None`."""
    if isinstance(kind, FieldInfo):
        yield from kind.metadata
        yield from _metadata(kind.annotation)
    for part in get_args(kind):
        yield part
        yield from _metadata(part)


_SECRET_BEARING = re.compile(r"URL$", re.IGNORECASE)


def explain(error: ValidationError, model: type[BaseModel], name_of: Callable[[str], str]) -> list[str]:
    """Returns one line per fault: the name, the value, what is wrong with it, and what is allowed.

    name_of: gives the name by which an operator knows a field, such as its variable.
    """
    return [_line(fault, model, name_of) for fault in error.errors()]


def _line(fault: ErrorDetails, model: type[BaseModel], name_of: Callable[[str], str]) -> str:
    field = str(fault["loc"][0])
    name, hint = name_of(field), allowed(model.model_fields[field])
    if fault["type"] == "missing":
        return f"{name} is not set: give {hint}"
    given = (
        show_url(str(fault["input"])) if _SECRET_BEARING.search(name) else show(_as_typed(fault["input"]))
    )
    reason = _fault_reason(fault)
    return f"{name}={given}{f' {reason}' if reason else ''}: allowed is {hint}"


def _as_typed(value: object) -> object:
    """A list as it would be typed on the command line, not as Python shows it."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value


def _fault_reason(fault: ErrorDetails) -> str:
    context: dict[str, Any] = fault.get("ctx") or {}
    if fault["type"] == "value_error":
        return str(context.get("error", ""))
    return ""
