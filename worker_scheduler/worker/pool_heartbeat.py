"""The heartbeat of a prefork worker's main process, for the jobs that its pool runs.

A job's own heartbeat is a thread of the pool process that runs it, and stops while C code of the
handler holds the GIL. The main process has its own GIL, so its heartbeat continues. It ends for all
jobs when the worker ends, and for one job when its pool process dies: Celery then no longer counts
the job as active.

The other pools have no process but the main one, whose one heartbeat is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from worker_scheduler.clock import Clock, refresh
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.worker.pool_memory import Held
from worker_scheduler.worker.renewal import renew_together


@dataclass
class PoolHeartbeat:
    """Renews the leases of the active jobs. held: the attempts that the pool's processes hold now."""

    database: Database
    clock: Clock
    lease: Lease
    held: Callable[[], Iterable[Held]]
    _attempts: dict[tuple[UUID, int], ClaimedJob] = field(default_factory=dict)

    def renew(self) -> bool:
        """Extends the leases of the active jobs, except of those whose row another transaction has locked.
        Always True: this heartbeat must outlive any one lease.
        """
        held = {(attempt.job_id, attempt.attempt) for attempt in self.held()}
        self._attempts = {key: job for key, job in self._attempts.items() if key in held}
        if not held:
            return True
        refresh(self.clock)
        self.clock()  # the first call asks Postgres, and would find no free connection below
        with self.database.autocommit() as connection:
            for job_id, attempt in held - self._attempts.keys():
                job = jobs.running(connection, job_id)
                if job is not None and job.attempt == attempt:
                    self._attempts[job_id, attempt] = job
        renew_together(self.database, self.clock, self.lease, self._attempts.values())
        return True
