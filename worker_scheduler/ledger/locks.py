"""SQL of sync_locks: one row says which tick of a kind runs now.

The lock avoids duplicate work; correctness does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.lease_sql import WAITED, is_over, is_valid


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: the tick of `partition_key`, since `acquired_at`."""

    partition_key: str
    acquired_at: datetime


# With ON CONFLICT the lock of the row is taken before its new values are computed.
_ACQUIRE = text(
    f"""
    INSERT INTO sync_locks AS l (lock_id, holder, partition_key, acquired_at, leased_until)
    VALUES (:lock_id, :holder, :partition_key, :now, :leased_until + {WAITED})
    ON CONFLICT (lock_id) DO UPDATE SET holder = excluded.holder,
        partition_key = excluded.partition_key, acquired_at = excluded.acquired_at,
        leased_until = :leased_until + {WAITED}
    WHERE {is_over("l.leased_until")}
    """
)

_RENEW = text(
    f"""
    WITH held AS MATERIALIZED (
        SELECT lock_id FROM sync_locks WHERE lock_id = :lock_id AND holder = :holder FOR UPDATE
    )
    UPDATE sync_locks l SET leased_until = :leased_until + {WAITED}
    FROM held WHERE l.lock_id = held.lock_id AND l.holder = :holder
    """
)

# A transaction that has just failed to acquire the lock holds this row until its end.
_LOCK_ROW = text("SELECT FROM sync_locks WHERE lock_id = :lock_id AND holder = :holder FOR UPDATE")

# That other transaction only opens a run; if its process is stopped, the lease ends the wait.
_SHORT_WAIT = text("SET LOCAL lock_timeout = '5s'")

_RELEASE = text("DELETE FROM sync_locks WHERE lock_id = :lock_id AND holder = :holder")

_REMOVE_EXPIRED = text(f"DELETE FROM sync_locks WHERE {is_over('leased_until')}")

_HOLDER = text(
    f"""
    SELECT partition_key, acquired_at FROM sync_locks
    WHERE lock_id = :lock_id AND {is_valid("leased_until")}
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
    """Takes a lock that is free or whose lease ran out; False if another tick holds it.

    In a transaction, also a False locks the row: until the transaction ends, that tick can neither renew
    nor release the lock.
    """
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
    """Extends the lease; False if `holder` no longer holds the lock."""
    result = connection.execute(
        _RENEW, {"lock_id": lock_id, "holder": holder, "leased_until": leased_until}
    )
    return result.rowcount == 1


def release(connection: Connection, lock_id: int, holder: UUID) -> None:
    """Gives the lock back if `holder` still holds it."""
    connection.execute(_RELEASE, {"lock_id": lock_id, "holder": holder})


def hold_row(connection: Connection, lock_id: int, holder: UUID) -> None:
    """Locks the row of a held lock, in a transaction: until that ends, nobody joins the holder.

    Raises StoreUnavailable if another transaction has locked it for 5 s.
    """
    connection.execute(_SHORT_WAIT)
    connection.execute(_LOCK_ROW, {"lock_id": lock_id, "holder": holder})


def remove_expired(connection: Connection, now: datetime) -> int:
    """Removes the locks whose holders did not renew them; returns how many."""
    return connection.execute(_REMOVE_EXPIRED, {"now": now}).rowcount


def holder_of(connection: Connection, lock_id: int, now: datetime) -> Holder | None:
    """The holder of the lock, or None if it is free."""
    row = connection.execute(_HOLDER, {"lock_id": lock_id, "now": now}).one_or_none()
    return None if row is None else Holder(**row._mapping)
