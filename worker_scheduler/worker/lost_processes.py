"""Ends the attempts of pool processes that are gone, or that the main process ends, in the ledger."""

from __future__ import annotations

import time
from dataclasses import dataclass

from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.worker.endings import Ending, Endings
from worker_scheduler.worker.patience import retry_while_unavailable
from worker_scheduler.worker.pool_memory import Held, PoolMemory

_STUCK_SECONDS = 3.0
"""Platforms kill all processes 30 s after they told them to stop, and Celery waits for 20 s of them."""

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class LostProcesses:
    """Ends attempts from a prefork worker's main process.

    timeout_seconds: for the text of a job that timed out. Each method returns how the attempt ended, None
    if it had ended before, and raises StoreUnavailable as Endings does.
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

    def hand_back_if_stuck(self, held: Held, stopped_at: float) -> Ending | None:
        """Hands an attempt back if its process has not done so 3 s after it was told to stop: it is in C
        code, which lets no signal through, or its handler has caught what ends it, or the process has died
        of the signal.

        stopped_at: by the monotonic clock.
        """
        while self.memory.held_by(held.pid) == held:
            if time.monotonic() >= stopped_at + _STUCK_SECONDS:
                job = self._attempt(held)
                return None if job is None else self.endings.hand_back(job)
            time.sleep(_POLL_SECONDS)
        return None

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
