"""Turns the options of a tick into the request that the history of requests stores."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid5

from worker_scheduler.config.options import TickOptions
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.requests import Asked

_NOT_OPTIONS = {"actor", "reason", "dry_run", "partition_key"}
"""A row has columns of its own for them; a dry run has no row."""


def asked(
    context: TickContext,
    options: TickOptions,
    verb: str,
    partition_key: str | None,
    slot: datetime | None = None,
) -> Asked:
    """The request that these options make. slot: when the day was due, if a trigger asks."""
    given = options.model_dump(exclude=_NOT_OPTIONS, exclude_defaults=True)
    return Asked(
        verb=verb,
        partition_key=partition_key,
        actor=options.actor or context.actor,
        source=context.requested_by,
        reason=options.reason,
        options=given if slot is None else {**given, "slot": slot.isoformat()},
        request_id=uuid5(context.request_id, str(partition_key)),  # one trigger may start several days
    )
