"""Rules about the month partitions of sync_jobs and of the histories."""

from __future__ import annotations

from datetime import UTC, timedelta

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import histories, months
from worker_scheduler.ledger.histories import History

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


def history_months(context: TickContext) -> int:
    """Makes this month and the next one of each history; what is missing is left to a later pass.

    That is no error: a row whose month is missing goes into the default partition, where prune finds it.
    """
    now = context.clock()
    this_month = now.astimezone(UTC).date().replace(day=1)
    with context.database.autocommit() as connection:
        return sum(
            histories.ensure(connection, history, month) is True
            for history in History
            for month in (this_month, months.next_month(now))
        )
