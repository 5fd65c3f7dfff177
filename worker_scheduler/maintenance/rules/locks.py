"""Rules about locks."""

from __future__ import annotations

from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import locks


def expired_locks(context: TickContext) -> int:
    """Removes locks whose holder is dead, so that a dead tick does not look like a running one."""
    with context.database.autocommit() as connection:
        return locks.remove_expired(connection, context.clock())
