"""SQL of sync_locks: one row says which tick of a kind runs now. Only saves work, guards nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: the tick of this partition, since then."""

    partition_key: str
    acquired_at: datetime


_ACQUIRE = text(
    """
    INSERT INTO sync_locks AS l (lock_id, holder, partition_key, acquired_at, leased_until)
    VALUES (:lock_id, :holder, :partition_key, :now, :leased_until)
    ON CONFLICT (lock_id) DO UPDATE SET holder = excluded.holder,
        partition_key = excluded.partition_key, acquired_at = excluded.acquired_at,
        leased_until = excluded.leased_until
    WHERE l.leased_until <= :now
    """
)

_RENEW = text(
    """
    UPDATE sync_locks SET leased_until = :leased_until
    WHERE lock_id = :lock_id AND holder = :holder
    """
)

_RELEASE = text("DELETE FROM sync_locks WHERE lock_id = :lock_id AND holder = :holder")

_REMOVE_EXPIRED = text("DELETE FROM sync_locks WHERE leased_until <= :now")

_HOLDER = text(
    """
    SELECT partition_key, acquired_at FROM sync_locks
    WHERE lock_id = :lock_id AND leased_until > :now
    """
)


def acquire(
    connection: Connection,
    lock_id: int,
    holder: UUID,
    *,
    partition_key: str,
    now: datetime,
    leased_until: datetime,
) -> bool:
    """Takes a lock that is free or whose lease ran out; says whether it is ours now."""
    result = connection.execute(
        _ACQUIRE,
        {
            "lock_id": lock_id,
            "holder": holder,
            "partition_key": partition_key,
            "now": now,
            "leased_until": leased_until,
        },
    )
    return result.rowcount == 1


def renew(connection: Connection, lock_id: int, holder: UUID, leased_until: datetime) -> bool:
    """Extends the lease; False where the lock is no longer ours."""
    result = connection.execute(
        _RENEW, {"lock_id": lock_id, "holder": holder, "leased_until": leased_until}
    )
    return result.rowcount == 1


def release(connection: Connection, lock_id: int, holder: UUID) -> None:
    """Gives the lock back, where it is still ours."""
    connection.execute(_RELEASE, {"lock_id": lock_id, "holder": holder})


def remove_expired(connection: Connection, now: datetime) -> int:
    """Takes away the locks whose holders did not renew them; how many."""
    return connection.execute(_REMOVE_EXPIRED, {"now": now}).rowcount


def holder_of(connection: Connection, lock_id: int, now: datetime) -> Holder | None:
    """Who holds the lock now; None where it is free."""
    row = connection.execute(_HOLDER, {"lock_id": lock_id, "now": now}).one_or_none()
    return None if row is None else Holder(**row._mapping)
