"""The values that an operator may give: bounds, parsing, and the one line that says what is allowed.

Shared by the variables (`settings.py`) and by the options of a tick (`options.py`), so that both
have the same bounds and the same words. It does not know which variables or options there are.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from worker_scheduler.redaction import show, show_url

MAX_BIGINT = 2**63 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")


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


BatchSize = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=5000)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=3600, allow_inf_nan=False)]
LeaseSeconds = Annotated[float, BeforeValidator(_no_bool), Field(ge=1, le=60, allow_inf_nan=False)]
JobCount = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=MAX_BIGINT)]
UserCount = Annotated[int, BeforeValidator(_whole_number), Field(ge=0, le=MAX_BIGINT)]
BackfillDays = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=3650)]
Days = Annotated[int, BeforeValidator(_days), Field(ge=0, le=366)]
Age = Annotated[int, BeforeValidator(_days), Field(ge=1, le=3650)]
Concurrency = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=64)]
Visibility = Annotated[int, BeforeValidator(_whole_number), Field(ge=2, le=86_400)]
Interval = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=3600)]
Attempts = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=1000)]
LockId = Annotated[int, BeforeValidator(_lock_id), Field(ge=1, le=MAX_BIGINT)]

_SECRET_BEARING = re.compile(r"URL$", re.IGNORECASE)


def explain(error: ValidationError, name_of: dict[str, str], allowed: dict[str, str]) -> list[str]:
    """One line a fault: the name an operator knows, the value, what is wrong, what is allowed.

    name_of: field → the variable's or option's name; allowed: field → the values it may have.
    """
    return [_line(fault, name_of, allowed) for fault in error.errors()]


def _line(fault: ErrorDetails, name_of: dict[str, str], allowed: dict[str, str]) -> str:
    field = str(fault["loc"][0]) if fault["loc"] else ""
    name = name_of.get(field, field)
    hint = allowed.get(field, "")
    if fault["type"] == "missing":
        return f"{name} is not set: give {hint}"
    given = (
        show_url(str(fault["input"])) if _SECRET_BEARING.search(name) else show(_as_typed(fault["input"]))
    )
    reason = _reason(fault)
    return f"{name}={given}{f' {reason}' if reason else ''}: allowed is {hint}"


def _as_typed(value: object) -> object:
    """A list as an option of the command line takes it, not as Python shows it."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value


def _reason(fault: ErrorDetails) -> str:
    context: dict[str, Any] = fault.get("ctx") or {}
    if fault["type"] == "value_error":
        return str(context.get("error", ""))
    return ""
