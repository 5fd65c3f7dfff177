"""Months, by which `sync_jobs` is divided: the ids that say which one, and SQL to make one. Drops none.

The id of a run is a UUID of version 7 (RFC 9562), and begins with the time at which the run was made;
a month's partition is a range of such ids. So all jobs of a run are in one partition, whenever they
were planned, and (run, user) is unique in the whole. A job's id begins with a time of its run's month,
so that whoever has only the job's id looks into one partition, too.
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

    Made here, since uuidv7() begins with PostgreSQL 18, and with Python 3.14.
    """
    milliseconds = int(now.timestamp() * 1000)
    variant = 0x80000000 | secrets.randbits(30)
    return f"{milliseconds:012x}7{secrets.randbits(12):03x}{variant:08x}"


def new_run_id(now: datetime) -> UUID:
    """For a run that is made now."""
    return UUID(f"{uuid_prefix(now)}{secrets.randbits(32):08x}")


def month_of(identity: UUID) -> date | None:
    """The first day of the month, in UTC, of which such a run or job is; None where its id has no time,
    or one that is beyond every calendar.
    """
    if identity.version != _TIME_VERSION or identity.int >> 80 >= _END_OF_TIME:
        return None
    return datetime.fromtimestamp((identity.int >> 80) / 1000, UTC).date().replace(day=1)


def begin_of(month: date) -> datetime:
    """When it begins, in UTC."""
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def end_of(month: date) -> datetime:
    """When the following month begins, in UTC."""
    return begin_of((month + timedelta(days=31)).replace(day=1))


def within(month: date | None, now: datetime) -> datetime:
    """`now`, or the last moment of the month where that is over."""
    return now if month is None else min(now, end_of(month) - timedelta(milliseconds=1))


def run_ids_of(month: date) -> tuple[UUID, UUID]:
    """The range of the month's runs: the first possible id, and the first one after it."""
    return _least_id(begin_of(month)), _least_id(end_of(month))


def partition_name(month: date) -> str:
    """The name of a month's table."""
    return f"sync_jobs_{month:%Y_%m}"


def ensure(connection: Connection, run_id: UUID) -> bool | None:
    """Makes the partition of the run's month where it is missing; says whether it made one.

    None: not yet, since somebody has used the default partition for longer than 0.2 s; nobody waits longer
    behind this. False also where none can be: the table is not divided, or the default partition has jobs
    of that month. Attaching reads the default partition while nobody else can: docs/scale.md has the cost.
    """
    month = month_of(run_id)
    return False if month is None else _ensure(connection, month)


def ensure_next(connection: Connection, now: datetime) -> bool | None:
    """The same for the month that follows, so that its first tick finds it made."""
    return _ensure(connection, next_month(now))


def next_month(now: datetime) -> date:
    """The first day of the month that follows, in UTC."""
    return end_of(now.astimezone(UTC).date().replace(day=1)).date()


def _ensure(connection: Connection, month: date) -> bool | None:
    first, following = run_ids_of(month)
    parameters = {"name": partition_name(month), "first_run_id": first, "next_run_id": following}
    made: bool | None = connection.execute(_ADD, parameters).scalar_one()
    return made


def _least_id(at: datetime) -> UUID:
    return UUID(int=int(at.timestamp() * 1000) << 80)
