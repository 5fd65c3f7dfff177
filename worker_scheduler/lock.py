"""The lock of a kind of tick: a row with a lease and a heartbeat. It saves work, guards nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import structlog

from worker_scheduler.clock import Clock
from worker_scheduler.errors import AlreadyRunning, Refused, SchedulerError
from worker_scheduler.heartbeat import beating
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import locks
from worker_scheduler.ledger.database import Database

log = structlog.get_logger(__name__)


@contextmanager
def hold(
    database: Database, lock_id: int, partition_key: str, clock: Clock, lease: Lease
) -> Iterator[None]:
    """Holds the lock meanwhile.

    Raises AlreadyRunning where a tick of this partition holds it, Refused where one of another does.
    """
    holder = uuid4()
    while True:
        now = clock()
        with database.autocommit() as connection:
            if locks.acquire(
                connection,
                lock_id,
                holder,
                partition_key=partition_key,
                now=now,
                leased_until=lease.until(now),
            ):
                break
        # Given back in between: try again.
        require_free(database, lock_id, partition_key, clock)

    def renew() -> bool:
        with database.autocommit() as connection:
            return locks.renew(connection, lock_id, holder, lease.until(clock()))

    try:
        with beating(renew, lease.heartbeat_seconds, "tick lock"):
            yield
    finally:
        _release(database, lock_id, holder)


def require_free(database: Database, lock_id: int, partition_key: str, clock: Clock) -> None:
    """Raises AlreadyRunning or Refused where a tick holds the lock, as `hold` does."""
    with database.autocommit() as connection:
        holder = locks.holder_of(connection, lock_id, clock())
    if holder is None:
        return
    since = f"since {holder.acquired_at:%Y-%m-%d %H:%M:%S} UTC"
    if holder.partition_key == partition_key:
        raise AlreadyRunning(f"a tick of {partition_key} is running {since}, nothing to do")
    raise Refused(
        f"a tick of {holder.partition_key} is running {since};"
        f" {partition_key} was not started: run the command again when that one has ended"
    )


def _release(database: Database, lock_id: int, holder: UUID) -> None:
    try:
        with database.autocommit() as connection:
            locks.release(connection, lock_id, holder)
    except SchedulerError as error:
        # Must not hide how the tick ended; the lease frees the lock by itself.
        log.warning("the tick's lock was not released, its lease will run out", error=str(error))
