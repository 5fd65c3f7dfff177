"""Tick lock: one tick of a kind at a time, by a row with a lease and a heartbeat.

It avoids duplicate work; correctness does not depend on it. A tick that finds the lock held by a tick of
the same partition joins that one: it has opened the run again, and the holder looks at the run before it
lets the lock go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from sqlalchemy import Connection

from worker_scheduler import logs
from worker_scheduler.clock import Clock
from worker_scheduler.errors import AlreadyRunning, Refused, SchedulerError
from worker_scheduler.leases import Lease, heartbeat
from worker_scheduler.ledger import locks, runs
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.locks import Holder

log = logs.get_logger(__name__)


@dataclass
class TickLock:
    """The lock of one kind of tick, as the tick of `partition_key` wants it or has it."""

    database: Database
    lock_id: int
    partition_key: str
    clock: Clock
    lease: Lease
    identity: UUID = field(default_factory=uuid4)
    _has_let_go: bool = False

    def acquire(self, connection: Connection) -> Holder | None:
        """Takes the lock within a transaction, or returns the tick of the same partition that holds it, and
        that cannot let it go before the transaction ends.

        Raises Refused if a tick of another partition holds it.
        """
        now = self.clock()
        if locks.acquire(
            connection,
            self.lock_id,
            self.identity,
            partition_key=self.partition_key,
            now=now,
            leased_until=self.lease.until(now),
        ):
            return None
        holder = locks.holder_of(connection, self.lock_id, now)
        if holder is not None:
            self._refuse_another(holder)
        return holder

    def refuse_another(self) -> None:
        """Raises Refused if a tick of another partition holds the lock now."""
        holder = self._holder()
        if holder is not None:
            self._refuse_another(holder)

    def require_free(self) -> None:
        """Raises AlreadyRunning if a tick of this partition holds the lock, Refused if another does."""
        holder = self._holder()
        if holder is None:
            return
        self._refuse_another(holder)
        raise AlreadyRunning(
            f"a tick of {holder.partition_key} is running {_since(holder)};"
            " without --dry-run, this command would add its users to that tick"
        )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Renews the acquired lock while the block runs, and releases it at the end if `let_go` has not."""

        def renew() -> bool:
            with self.database.autocommit() as connection:
                leased_until = self.lease.until(self.clock())
                return locks.renew(connection, self.lock_id, self.identity, leased_until)

        try:
            with heartbeat(renew, self.lease.heartbeat_seconds, "tick lock"):
                yield
        finally:
            if not self._has_let_go:
                self._release()

    def let_go(self, run_id: UUID) -> bool:
        """Releases the lock, unless the run has been opened again; says whether it has not.

        No tick can join between the look and the release. If Postgres does not answer, reconcile does what
        is left.
        """
        try:
            with self.database.transaction() as connection:
                locks.hold_row(connection, self.lock_id, self.identity)
                if runs.is_to_be_planned(connection, run_id):
                    return False
                locks.release(connection, self.lock_id, self.identity)
            self._has_let_go = True
        except SchedulerError as error:
            _log_not_released(error)
        return True

    def _holder(self) -> Holder | None:
        with self.database.autocommit() as connection:
            return locks.holder_of(connection, self.lock_id, self.clock())

    def _refuse_another(self, holder: Holder) -> None:
        if holder.partition_key != self.partition_key:
            raise Refused(
                f"a tick of {holder.partition_key} is running {_since(holder)};"
                f" {self.partition_key} was not started: run the command again when that tick has ended"
            )

    def _release(self) -> None:
        try:
            with self.database.autocommit() as connection:
                locks.release(connection, self.lock_id, self.identity)
        except SchedulerError as error:
            # Not raised, since it would hide how the tick ended; the lease frees the lock without help.
            _log_not_released(error)


def _since(holder: Holder) -> str:
    return f"since {holder.acquired_at:%Y-%m-%d %H:%M:%S} UTC"


def _log_not_released(error: SchedulerError) -> None:
    log.warning("the tick's lock was not released, its lease will run out", error=str(error))
