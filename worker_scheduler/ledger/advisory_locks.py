"""The numbers of Postgres' advisory locks, each named once; they are held until a transaction ends.

They share one space of numbers with every other user of the database. None equals a default of
SCHEDULER_DAILY_LOCK_ID or SCHEDULER_BACKFILL_LOCK_ID: those name rows of sync_locks, and one number with
two meanings would mislead a reader of pg_locks.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

SCHEMA_CHANGE = 0x7761766500
"""Held while tables are created: by `scheduler migrate`, and by the function sync_jobs_add_month, which has
a copy of the number in its SQL.
"""

PRUNE = 0x7761766510
"""Held by the one `scheduler prune` that drops a month."""

PROBE = 0x7761766520
"""Held by the one reconcile pass that sends a probe."""

_HOLD = text("SELECT pg_advisory_xact_lock(:number)")


def hold(connection: Connection, number: int) -> None:
    """Waits for the lock and holds it until the transaction ends, so it is safe behind PgBouncer.

    Raises what Postgres says when `lock_timeout` is over.
    """
    connection.execute(_HOLD, {"number": number})
