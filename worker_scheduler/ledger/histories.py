"""SQL of the two histories, which are divided by months: adds months, drops old ones.

What comes while its month has no partition goes into the default partition, and is deleted there row by
row.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from enum import Enum

from sqlalchemy import Connection, text

from worker_scheduler.ledger import advisory_locks


class History(Enum):
    """A history: its table, and the column by which it is divided."""

    REQUESTS = ("sync_requests", "requested_at")
    JOB_EVENTS = ("sync_job_events", "happened_at")

    @property
    def table(self) -> str:
        """The table's name."""
        return self.value[0]


_ADD = text("SELECT sync_history_add_month(:history, :year, :month)")

_PARTITIONS = {
    history: text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        f" WHERE i.inhparent = '{history.table}'::regclass ORDER BY c.relname"
    )
    for history in History
}

# As for the months of sync_jobs (prune.py): writers queue behind DROP TABLE.
_SHORT_WAIT = text("SET LOCAL lock_timeout = '1s'")

_DELETE_MONTHLESS = {
    history: text(
        f"""
        DELETE FROM {table}_monthless WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table}_monthless WHERE {moment} <= :cutoff LIMIT :limit))
            AND {moment} <= :cutoff
        """
    )
    for history in History
    for table, moment in [history.value]
}


def partition_name(history: History, month: date) -> str:
    """The name of a month of a history."""
    return f"{history.table}_{month:%Y_%m}"


def ensure(connection: Connection, history: History, month: date) -> bool | None:
    """Adds a month of a history if it is missing; True if it added one.

    None: another transaction used the default partition for longer than 0.2 s. False also if the default
    partition has rows of that month, which then stay there until they are old.
    """
    parameters = {"history": history.table, "year": month.year, "month": month.month}
    added: bool | None = connection.execute(_ADD, parameters).scalar_one()
    return added


def partitions(connection: Connection, history: History) -> list[date]:
    """The months of a history that have a partition, oldest first."""
    month = re.compile(rf"{history.table}_(\d{{4}})_(\d{{2}})")
    found = [month.fullmatch(name) for name in connection.execute(_PARTITIONS[history]).scalars()]
    return [date(int(match[1]), int(match[2]), 1) for match in found if match]


def drop(connection: Connection, history: History, month: date) -> bool:
    """Drops a month of a history in a transaction; False if another prune has done it."""
    connection.execute(_SHORT_WAIT)
    advisory_locks.hold(connection, advisory_locks.PRUNE)
    if month not in partitions(connection, history):
        return False
    connection.execute(text(f"DROP TABLE {partition_name(history, month)}"))
    return True


def delete_monthless(connection: Connection, history: History, *, cutoff: datetime, limit: int) -> int:
    """Deletes at most `limit` rows until `cutoff` that are in no month; returns how many."""
    return connection.execute(_DELETE_MONTHLESS[history], {"cutoff": cutoff, "limit": limit}).rowcount
