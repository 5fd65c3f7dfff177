"""Claims the job of a message, and says in the log why a message leads to no attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.clock import Clock, refresh
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import any_job, claiming, jobs, probes
from worker_scheduler.ledger.any_job import AnyJob
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.claiming import Claim
from worker_scheduler.ledger.database import Database
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.worker.naming import naming
from worker_scheduler.worker.overdue import RunningAttempts
from worker_scheduler.worker.patience import retry_while_unavailable
from worker_scheduler.worker.stopped_runs import StoppedRunsWatch

log = logs.get_logger(__name__)

_BESIDE_ITSELF = timedelta(minutes=1)
"""For how long a job is put off that comes to a process in which an earlier attempt still runs."""

_TRIES = 3
"""A claim is repeated if it came too late after the look at stopped runs."""


@dataclass(frozen=True)
class Claimer:
    """Claims jobs for one process. stopped_runs: which runs start no job. running: what runs here already.

    Each method raises StoreUnavailable if Postgres stays unavailable for longer than a worker waits for it.
    """

    database: Database
    clock: Clock
    lease: Lease
    stopped_runs: StoppedRunsWatch
    running: RunningAttempts

    def claim(self, job_id: UUID) -> ClaimedJob | None:
        """The attempt that the message of a job leads to; None if it leads to none, as a probe does."""
        if is_probe(job_id):
            self.answer_probe(job_id)
            return None
        if job_id in self.running:
            self._postpone(job_id)
            return None
        claim = retry_while_unavailable(lambda: self._try_to_claim(job_id))
        if claim.job is None:
            log.info("message ignored, its job is not waiting", **_told(job_id, claim.unclaimed))
        return claim.job

    def answer_probe(self, probe_id: UUID) -> None:
        """Notes that a probe has come through its queue."""

        def note() -> None:
            with self.database.autocommit() as connection:
                probes.note_arrival(connection, probe_id, self.clock())

        retry_while_unavailable(note)

    def told(self, job_id: UUID) -> dict[str, str]:
        """What a log line says of a job that this process does not hold."""

        def look() -> dict[str, str]:
            with self.database.autocommit() as connection:
                return _told(job_id, any_job.get(connection, job_id))

        return retry_while_unavailable(look)

    def _try_to_claim(self, job_id: UUID) -> Claim:
        for _ in range(_TRIES):
            refresh(self.clock)  # after a long rest there was no heartbeat
            stopped = self.stopped_runs.known()
            now = self.clock()
            with self.database.autocommit() as connection:
                claim = claiming.claim(connection, job_id, now, self.lease.until(now), stopped)
            if not claim.is_stale:
                return claim
            self.stopped_runs.forget()
        raise StoreUnavailable("Postgres takes seconds to answer, so a job could start in a paused run")

    def _postpone(self, job_id: UUID) -> None:
        """Two attempts must not run beside each other here: the lease of the first one ran out, or its
        time.
        """

        def postpone() -> bool:
            with self.database.autocommit() as connection:
                return jobs.postpone(connection, job_id, self.clock() + _BESIDE_ITSELF)

        if retry_while_unavailable(postpone):
            log.warning("job put off, an earlier attempt still runs here", **self.told(job_id))
        else:
            log.info("message ignored, its job is not waiting", **self.told(job_id))


def _told(job_id: UUID, found: AnyJob | None) -> dict[str, str]:
    if found is None:
        return {"job_id": str(job_id), "status": "unknown"}
    return {**naming(found), "status": found.status}
