"""What a readable message is: its envelope on Redis, and a task's headers and body on any broker."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from celery import Celery
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.functional_validators import AfterValidator

MAX_BYTES = 16 * 1024 * 1024
"""The size of the largest message, and of the largest body when it is unpacked; as in RabbitMQ 4."""


class Unreadable(Exception):
    """A message has not the form of a message of Celery; the text says what is wrong."""


def _require_time(text: str) -> str:
    """Reads the time as Celery will. Raises ValueError."""
    try:
        moment: datetime = maybe_make_aware(maybe_iso8601(text), "UTC")
        timezone.to_system(moment).timestamp()
    except (OverflowError, TypeError, AttributeError) as error:
        raise ValueError(type(error).__name__) from error
    return text


_Name = Annotated[str, Field(min_length=1, max_length=255)]
_Count = Annotated[int, Field(ge=0, le=2**31)]
_Time = Annotated[str, Field(max_length=64), AfterValidator(_require_time)]
# A day is far more than any job takes; a timer overflows far above it.
_Limit = Annotated[float, Field(gt=0, le=365 * 86_400, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Route(_Part):
    exchange: str
    routing_key: str


class _Properties(_Part):
    delivery_tag: _Name
    delivery_info: _Route
    body_encoding: Literal["utf-8", "base64"] | None = None
    correlation_id: str | None = None
    reply_to: str | None = None


class _Envelope(_Part):
    """What kombu reads of an entry of a queue, which is JSON."""

    body: str | bytes
    content_type: str | None = Field(None, alias="content-type")
    content_encoding: str | None = Field(None, alias="content-encoding")
    headers: dict[str, Any]
    properties: _Properties


class _TaskHeaders(_Part):
    """What Celery's protocol 2 says of a task: https://docs.celeryq.dev/en/stable/internals/protocol.html"""

    id: _Name
    task: _Name
    lang: str | None = None
    shadow: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    eta: _Time | None = None
    expires: _Time | None = None
    retries: _Count | None = None
    timelimit: Annotated[list[_Limit | None], Field(min_length=2, max_length=2)] | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: _Count | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None


class _Embedded(_Part):
    callbacks: list[dict[str, Any]] | None = None
    errbacks: list[dict[str, Any]] | None = None
    chain: list[dict[str, Any]] | None = None
    chord: dict[str, Any] | None = None


class _TaskBody(_Part):
    arguments: list[Any]
    named: dict[str, Any]
    embedded: _Embedded


def require_envelope(entry: object) -> None:
    """Raises Unreadable unless kombu can make a message of an entry of a queue in Redis."""
    _require(_Envelope, entry, "the message")


def require_task(message: Message, app: Celery) -> None:
    """Raises Unreadable unless Celery can make a request of the message, and call its task.

    Unknown tasks are left to Celery, which looks them up.
    """
    _require(_TaskHeaders, message.headers, "its headers")
    try:
        body = message.payload
    except Exception as error:
        raise Unreadable(f"its body cannot be decoded: {type(error).__name__}: {error}") from error
    if not isinstance(body, list | tuple) or len(body) != 3:
        raise Unreadable("its body is not [arguments, keyword arguments, embedded]")
    _require(_TaskBody, dict(zip(_TaskBody.model_fields, body, strict=True)), "its body")
    task = app.tasks.get(message.headers["task"])
    try:
        if task is not None and task.typing:
            task.__header__(*body[0], **body[1])
    except TypeError as error:
        raise Unreadable(f"its arguments do not fit the task: {error}") from error


def _require(model: type[BaseModel], value: object, name: str) -> None:
    if not isinstance(value, Mapping):
        raise Unreadable(f"{name} is not an object")
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Unreadable(f"{place} of {name}: {first['msg']}") from error
