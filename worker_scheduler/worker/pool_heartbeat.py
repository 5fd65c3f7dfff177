"""The heartbeat of a prefork worker's main process, for the jobs that its pool runs.

A job's own heartbeat is a thread of the pool process that runs it, and stops while C code of the
handler holds the GIL. The main process has its own GIL, so its heartbeat continues. It ends for all
jobs when the worker ends, and for one job when its pool process dies: Celery then no longer counts
the job as active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from worker_scheduler.clock import Clock, refresh
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.jobs import ClaimedJob
from worker_scheduler.worker.renewal import renew_together


@dataclass
class PoolHeartbeat:
    """Renews the leases of the active jobs. active: returns the ids of the jobs that the pool runs now."""

    database: Database
    clock: Clock
    lease: Lease
    active: Callable[[], Iterable[UUID]]
    # The attempts that this worker runs. Each is noted at its first heartbeat, long before its lease can
    # run out and another worker can start the next attempt.
    _attempts: dict[UUID, ClaimedJob] = field(default_factory=dict)

    def renew(self) -> bool:
        """Extends the leases of the active jobs, except of those whose row another transaction has locked.
        Always True: this heartbeat must outlive any one lease.
        """
        active = set(self.active())
        self._attempts = {job: attempt for job, attempt in self._attempts.items() if job in active}
        if not active:
            return True
        refresh(self.clock)
        self.clock()  # the first call asks Postgres, and would find no free connection below
        with self.database.autocommit() as connection:
            for job_id in active - self._attempts.keys():
                attempt = jobs.running(connection, job_id)
                if attempt is not None:
                    self._attempts[job_id] = attempt
        renew_together(self.database, self.clock, self.lease, self._attempts.values())
        return True
