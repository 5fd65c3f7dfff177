"""The heartbeat of a prefork worker's main process, for the jobs that its pool does now.

A job's own heartbeat is a thread of the process that does it, and stops while C code of the handler
holds the GIL. The main process has a GIL of its own, so its heartbeat goes on. It ends with the
worker, and with the process of the pool: Celery then no longer counts the job as active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from worker_scheduler.clock import Clock
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.jobs import ClaimedJob


@dataclass
class LeaseKeeper:
    """Keeps the leases of the active jobs. active: the ids of the jobs that the pool does now."""

    database: Database
    clock: Clock
    lease: Lease
    active: Callable[[], Iterable[UUID]]
    # Which attempts are this worker's: seen at the first beat, long before a lease can have run out.
    _attempts: dict[UUID, ClaimedJob] = field(default_factory=dict)

    def beat(self) -> bool:
        """Extends each active job's lease; always True, since the next job has another lease."""
        active = set(self.active())
        self._attempts = {job: attempt for job, attempt in self._attempts.items() if job in active}
        if not active:
            return True
        with self.database.autocommit() as connection:
            for job_id in active - self._attempts.keys():
                attempt = jobs.running(connection, job_id)
                if attempt is not None:
                    self._attempts[job_id] = attempt
            for attempt in self._attempts.values():
                jobs.extend_lease(connection, attempt, self.lease.until(self.clock()))
        return True
