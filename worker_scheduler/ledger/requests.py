"""SQL of sync_requests: who asked for what, from where, with which options, and what came of it.

The table only grows, and nothing decides by it. A verb uses it like this:

    asked = Asked(verb="pause", partition_key=key, actor=actor, source=source, reason=reason,
                  options={"until": until})
    with requests.refusals_recorded(database, clock, asked), database.transaction() as connection:
        run_id = ...  # the change itself; it raises Refused if a rule forbids it
        requests.record(connection, asked, "paused", now=clock(), run_id=run_id)

So the row is there if and only if the change is, and a refusal has a row in a transaction of its own.
A dry run changes nothing, and has no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid4, uuid5

from sqlalchemy import Connection, text

from worker_scheduler.clock import Clock
from worker_scheduler.errors import Interrupted, SchedulerError, StoreUnavailable
from worker_scheduler.ledger.database import Database
from worker_scheduler.redaction import escape_control_characters, mask_passwords

LONGEST_NAME = 200
LONGEST_REASON = 1000
_LONGEST_DETAIL = 2000

_TASKS = UUID("5b1c7a52-2f0e-4c0b-9a0f-6d1f3c6f7f11")
"""The namespace of the ids of requests that come as a Celery task."""

# A task is executed again after an outage, and reconcile asks again in each pass: if nothing else comes of
# it than before, the row that is there says it all. Two days is much longer than a task is repeated. On a
# conflict of two executions within a microsecond a row is lost: no request may fail because of the history.
_RECORD = text(
    """
    INSERT INTO sync_requests (request_id, requested_at, verb, partition_key, run_id, actor, source, reason,
        options, outcome, detail)
    SELECT CAST(:request_id AS uuid), CAST(:now AS timestamptz), CAST(:verb AS text),
        CAST(:partition_key AS text), CAST(:run_id AS uuid), CAST(:actor AS text), CAST(:source AS text),
        CAST(:reason AS text), CAST(:options AS jsonb), CAST(:outcome AS text), CAST(:detail AS text)
    WHERE NOT EXISTS (
        SELECT FROM sync_requests
        WHERE requested_at > CAST(:now AS timestamptz) - interval '2 days'
            AND request_id = CAST(:request_id AS uuid)
            AND verb = CAST(:verb AS text)
            AND partition_key IS NOT DISTINCT FROM CAST(:partition_key AS text)
            AND outcome = CAST(:outcome AS text)
            AND options = CAST(:options AS jsonb))
    ON CONFLICT DO NOTHING
    """
)


@dataclass(frozen=True)
class Asked:
    """A request as it came in. What is stored of it is bounded, escaped and without secrets.

    verb: the command, such as `pause`. partition_key: what it is about, also if there is no such run; None
    if it is about none. actor: who says to be behind it. source: where it came from, `cli user@host` or
    `task <id>`. options: those that were given, without the ones above; of a list only its length is
    stored, since it may name a million users. request_id: another execution of the same request has the
    same, see `id_of_task`.
    """

    verb: str
    partition_key: str | None
    actor: str
    source: str
    reason: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    request_id: UUID = field(default_factory=uuid4)


def id_of_task(task_id: str) -> UUID:
    """The id of the request that a Celery task makes: the same at each execution of the task."""
    return uuid5(_TASKS, task_id.encode("utf-8", "backslashreplace").decode())


def record(
    connection: Connection,
    asked: Asked,
    outcome: str,
    *,
    now: datetime,
    run_id: UUID | None = None,
    detail: str | None = None,
) -> None:
    """Adds the row of a request, in the transaction of what it changes.

    A request with the same id, key, options and outcome has one row in two days. outcome: one word, such as
    `opened`, `joined`, `refused` or `paused`. detail: a refusal's text, or what was changed.
    """
    connection.execute(
        _RECORD,
        {
            "request_id": asked.request_id,
            "now": now,
            "verb": asked.verb,
            "partition_key": asked.partition_key,
            "run_id": run_id,
            "actor": _storable(asked.actor, LONGEST_NAME),
            "source": _storable(asked.source, LONGEST_NAME),
            "reason": None if asked.reason is None else _storable(asked.reason, LONGEST_REASON),
            "options": json.dumps({name: _option(value) for name, value in asked.options.items()}),
            "outcome": outcome,
            "detail": None if detail is None else _storable(detail, _LONGEST_DETAIL),
        },
    )


def record_refusal(database: Database, clock: Clock, asked: Asked, error: SchedulerError) -> None:
    """Adds the row of a request that `error` ended before it changed anything, if Postgres takes it.

    There is no row for an interrupted command, nor if Postgres may be away: to ask it once more would only
    delay the answer.
    """
    if isinstance(error, Interrupted | StoreUnavailable):
        return
    with suppress(SchedulerError), database.autocommit() as connection:
        record(connection, asked, error.outcome.value, now=clock(), detail=str(error))


@contextmanager
def refusals_recorded(database: Database, clock: Clock, asked: Asked) -> Iterator[None]:
    """Records each SchedulerError that ends the block, as `record_refusal` does, and lets it go on.

    Outside the transaction of the change, which the error rolls back.
    """
    try:
        yield
    except SchedulerError as error:
        record_refusal(database, clock, asked, error)
        raise


def _option(value: object) -> object:
    if isinstance(value, list | tuple | set | frozenset):
        return len(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    # In ASCII: jsonb takes no escape of a character that the database's encoding lacks.
    return _storable(str(value), LONGEST_NAME).encode("ascii", "backslashreplace").decode()


def _storable(said: str, longest: int) -> str:
    shown = escape_control_characters(mask_passwords(said))
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
