"""Ends the attempts of pool processes that are gone, or that the main process ends, in the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.worker.endings import Ending, Endings
from worker_scheduler.worker.patience import retry_while_unavailable
from worker_scheduler.worker.pool_memory import Held, PoolMemory


@dataclass(frozen=True)
class LostProcesses:
    """Ends attempts from a prefork worker's main process.

    timeout_seconds: for the text of a job that timed out. Both methods return how the attempt ended, None
    if it had ended before, and raise StoreUnavailable as Endings does.
    """

    memory: PoolMemory
    database: Database
    endings: Endings
    timeout_seconds: float

    def lose(self, held: Held, reason: str) -> Ending | None:
        """Ends an attempt whose process is gone: it is lost, or handed back if the worker stops."""
        job = self._attempt(held)
        if job is None:
            return None
        return self.endings.hand_back(job) if self.memory.stopping else self.endings.lose(job, reason)

    def time_out(self, held: Held) -> Ending | None:
        """Ends an attempt whose time is over; raises StoreUnavailable also if its row is locked."""
        job = self._attempt(held)
        return None if job is None else self.endings.time_out_unless_locked(job, self.timeout_seconds)

    def _attempt(self, held: Held) -> ClaimedJob | None:
        """The attempt, if it still runs; another worker may run the next one."""

        def look() -> ClaimedJob | None:
            with self.database.autocommit() as connection:
                return jobs.running(connection, held.job_id)

        job = retry_while_unavailable(look)
        return job if job is not None and job.attempt == held.attempt else None
