"""The months by which `sync_jobs` is divided: which ids belong to a month, and SQL to add one.

The id of a run is a UUID of version 7 (RFC 9562) and begins with the time at which the run was created; a
month partition is a range of such ids. So all jobs of a run are in one partition, whenever they were
planned, and (run, user) is unique in the whole table. A job's id begins with a time in the month of its
run, so that a worker that has only the job's id looks into one partition, too. `prune.py` drops months.
"""

from __future__ import annotations

import secrets
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

_TIME_VERSION = 7
_END_OF_TIME = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1000)
_ADD = text("SELECT sync_jobs_add_month(:name, :first_run_id, :next_run_id)")


def uuid_prefix(now: datetime) -> str:
    """The first 24 hex digits of a UUID of version 7: time, version, 12 and 30 random bits.

    PostgreSQL has uuidv7() only from 18 on, Python from 3.14 on.
    """
    milliseconds = int(now.timestamp() * 1000)
    variant = 0x80000000 | secrets.randbits(30)
    return f"{milliseconds:012x}7{secrets.randbits(12):03x}{variant:08x}"


def new_run_id(now: datetime) -> UUID:
    """The id for a run that is created now."""
    return UUID(f"{uuid_prefix(now)}{secrets.randbits(32):08x}")


def month_of(identity: UUID) -> date | None:
    """The first day of the month, in UTC, that the id of a run or job belongs to; None if the id has no
    time, or one after the year 9998.
    """
    if identity.version != _TIME_VERSION or identity.int >> 80 >= _END_OF_TIME:
        return None
    return datetime.fromtimestamp((identity.int >> 80) / 1000, UTC).date().replace(day=1)


def begin_of(month: date) -> datetime:
    """When the month begins, in UTC."""
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def end_of(month: date) -> datetime:
    """When the following month begins, in UTC."""
    return begin_of((month + timedelta(days=31)).replace(day=1))


def within(month: date | None, now: datetime) -> datetime:
    """`now`, but at most the last millisecond of the month."""
    return now if month is None else min(now, end_of(month) - timedelta(milliseconds=1))


def run_ids_of(month: date) -> tuple[UUID, UUID]:
    """The range of run ids of a month: the first possible id, and the first of the following month."""
    return _least_id(begin_of(month)), _least_id(end_of(month))


def partition_name(month: date) -> str:
    """The name of a month partition."""
    return f"sync_jobs_{month:%Y_%m}"


def ensure(connection: Connection, run_id: UUID) -> bool | None:
    """Adds the partition of the run's month if it is missing; True if it added one.

    None: it could not, because another transaction used the default partition for longer than 0.2 s. This
    call does not wait longer, since claims wait behind it. False also if the month cannot have a partition:
    the table is not divided, or the default partition has jobs of that month. While it attaches the new
    partition, Postgres reads the default partition and nobody else can use it: docs/scale.md has the cost.
    """
    month = month_of(run_id)
    return False if month is None else _ensure(connection, month)


def ensure_next(connection: Connection, now: datetime) -> bool | None:
    """Adds the partition of the following month ahead of its first tick; returns as `ensure` does."""
    return _ensure(connection, next_month(now))


def next_month(now: datetime) -> date:
    """The first day of the following month, in UTC."""
    return end_of(now.astimezone(UTC).date().replace(day=1)).date()


def _ensure(connection: Connection, month: date) -> bool | None:
    first, following = run_ids_of(month)
    parameters = {"name": partition_name(month), "first_run_id": first, "next_run_id": following}
    added: bool | None = connection.execute(_ADD, parameters).scalar_one()
    return added


def _least_id(at: datetime) -> UUID:
    return UUID(int=int(at.timestamp() * 1000) << 80)
