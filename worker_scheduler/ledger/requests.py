"""SQL of sync_requests: who asked for what, from where, and what came of it. Rows are only added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.months import new_run_id

_RECORD = text(
    """
    INSERT INTO sync_requests (request_id, requested_at, verb, partition_key, run_id, actor, source, reason,
                               options, outcome, detail)
    VALUES (:request_id, :now, :verb, :partition_key, :run_id, :actor, :source, :reason,
            CAST(:options AS jsonb), :outcome, :detail)
    """
)


@dataclass(frozen=True)
class Asked:
    """What somebody asked for.

    verb: the command or task. partition_key: as it was given, also if there is no such run. actor: who says
    to be behind it. source: where it came from, `cli user@host` or `task <id>`. options: without secrets,
    and with numbers instead of long lists.
    """

    verb: str
    partition_key: str | None
    actor: str
    source: str
    reason: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def record(
    connection: Connection,
    asked: Asked,
    *,
    outcome: str,
    now: datetime,
    run_id: UUID | None = None,
    detail: str | None = None,
) -> UUID:
    """Records a request with its outcome, in the transaction of what it changed; returns the row's id.

    detail: a refusal's text, or what was changed.
    """
    request_id = new_run_id(now)
    connection.execute(
        _RECORD,
        {
            "request_id": request_id,
            "now": now,
            "verb": asked.verb,
            "partition_key": asked.partition_key,
            "run_id": run_id,
            "actor": asked.actor,
            "source": asked.source,
            "reason": asked.reason,
            "options": json.dumps(dict(asked.options)),
            "outcome": outcome,
            "detail": detail,
        },
    )
    return request_id
