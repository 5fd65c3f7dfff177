"""Rules about the month partitions of sync_jobs."""

from __future__ import annotations

from datetime import timedelta

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import months

_MONTH_IS_NEAR = timedelta(days=3)
"""If the month is further away, a partition that cannot be made now is left to a later pass."""


def next_month(context: TickContext) -> int:
    """Makes the partition of the next month ahead, so that no tick waits for it.

    While a long transaction, such as a backup, uses the table, each pass tries for a moment only. Raises
    StoreUnavailable if that has gone on until shortly before the month begins.
    """
    now = context.clock()
    with context.database.autocommit() as connection:
        made = months.ensure_next(connection, now)
    month = months.next_month(now)
    if made is None and months.begin_of(month) - now <= _MONTH_IS_NEAR:
        raise StoreUnavailable(
            f"{months.partition_name(month)} cannot be made: another transaction uses sync_jobs_monthless"
            " at each try; end that transaction, otherwise the month's jobs go into sync_jobs_monthless"
        )
    return int(made is True)
