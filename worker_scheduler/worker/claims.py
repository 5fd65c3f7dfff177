"""Claims a job, runs it under a lease, and records in its row how it ended. Knows no Celery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.clock import Clock, refresh
from worker_scheduler.leases import Lease, Renewal, SharedHeartbeat
from worker_scheduler.ledger import any_job, jobs, probes, revoked_jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.worker.endings import Ending, Endings
from worker_scheduler.worker.naming import name_of, naming
from worker_scheduler.worker.patience import retry_while_unavailable
from worker_scheduler.worker.renewal import renew_together
from worker_scheduler.worker.retry_on import RetryOn, never
from worker_scheduler.worker.returned import require_finished
from worker_scheduler.worker.termination import is_termination
from worker_scheduler.worker.types import RetryLater, SkipJob, SyncJob

log = logs.get_logger(__name__)


@dataclass(frozen=True)
class Worker:
    """Claims jobs and finishes them.

    max_attempts, retry_on: as for Endings. heartbeat_database: connections for the heartbeat
    alone, so that jobs whose end waits for a lock cannot take them all; None: those of `database`.
    """

    database: Database
    clock: Clock
    lease: Lease
    max_attempts: int
    retry_on: RetryOn = never
    heartbeat_database: Database | None = None

    @cached_property
    def endings(self) -> Endings:
        """Records how this worker's attempts end."""
        return Endings(self.database, self.clock, self.max_attempts, self.retry_on)

    @cached_property
    def shared_heartbeat(self) -> SharedHeartbeat[ClaimedJob]:
        """Renews the leases of the jobs that run; one thread, started by the first of them."""
        return SharedHeartbeat(self._renew, self.lease.heartbeat_seconds)

    @contextmanager
    def claim(self, job_id: UUID) -> Iterator[SyncJob | None]:
        """Does what `worker_scheduler.claim` says, with this worker's database and clock."""
        job = self._claim_or_log(job_id)
        if job is None:
            yield None
            return
        with self._renewing(job):
            try:
                yield _sync_job(job)
            except (SkipJob, RetryLater) as ending:
                self.endings.record(job, ending)
            except BaseException as error:  # sys.exit() and asyncio's cancellations end the body, too
                self.endings.record(job, error)
                raise
            else:
                self.endings.record(job, None)

    def run(self, job_id: UUID, handler: Callable[[SyncJob], object]) -> Ending | None:
        """Does a job with a handler. What the handler raises goes into the job's row and the log only.

        Returns how the attempt ended; None if the job was not waiting, or was taken away from this attempt.

        Raises StoreUnavailable if Postgres stays unavailable for longer than a worker waits for it, and
        SystemExit if the pool stops this process.
        """
        job = self._claim_or_log(job_id)
        if job is None:
            return None
        with self._renewing(job):
            raised = self._call(handler, job)
            ending = self.endings.record(job, raised)
        if raised is not None and is_termination(raised):
            raise raised
        return ending

    def answer_probe(self, probe_id: UUID) -> None:
        """Notes that a probe has come through its queue. Raises StoreUnavailable as `run` does."""

        def note() -> None:
            with self.database.autocommit() as connection:
                probes.note_arrival(connection, probe_id, self.clock())

        retry_while_unavailable(note)

    def skip_revoked(self, job_id: UUID, killed: bool) -> None:
        """Records that a job was revoked, unless it has ended. killed: also if it runs.

        Raises StoreUnavailable as `run` does.
        """
        skip = revoked_jobs.skip_unfinished if killed else revoked_jobs.skip_waiting

        def step() -> bool:
            with self.database.autocommit() as connection:
                return skip(connection, job_id, self.clock())

        if retry_while_unavailable(step):
            log.info("job skipped, it was revoked", **self._told(job_id))

    def _claim_or_log(self, job_id: UUID) -> ClaimedJob | None:
        if is_probe(job_id):
            self.answer_probe(job_id)
            return None
        job = retry_while_unavailable(lambda: self._try_to_claim(job_id))
        if job is None:
            log.info("message ignored, its job is not waiting", **self._told(job_id))
        return job

    def _told(self, job_id: UUID) -> dict[str, str]:
        """What a log line says of a job that this process does not hold."""

        def look() -> dict[str, str]:
            with self.database.autocommit() as connection:
                found = any_job.get(connection, job_id)
            if found is None:
                return {"job_id": str(job_id), "status": "unknown"}
            return {**naming(found), "status": found.status}

        return retry_while_unavailable(look)

    def _try_to_claim(self, job_id: UUID) -> ClaimedJob | None:
        refresh(self.clock)  # after a long rest there was no heartbeat
        now = self.clock()
        with self.database.autocommit() as connection:
            return jobs.claim(connection, job_id, now, self.lease.until(now))

    def _call(self, handler: Callable[[SyncJob], object], job: ClaimedJob) -> BaseException | None:
        """What the handler raised, or None if it returned and has done its work."""
        try:
            require_finished(handler(_sync_job(job)))
        except BaseException as error:  # noqa: BLE001 - sys.exit() and asyncio's cancellations end it, too
            return error
        return None

    def _renewing(self, job: ClaimedJob) -> AbstractContextManager[None]:
        """Keeps the lease until the end is recorded: that may take as long as a lock or an outage."""
        return self.shared_heartbeat.keep(job, name_of(job))

    def _renew(self, held: Sequence[ClaimedJob]) -> Renewal[ClaimedJob]:
        refresh(self.clock)
        database = self.heartbeat_database or self.database
        return renew_together(database, self.clock, self.lease, held)


def _sync_job(claimed: ClaimedJob) -> SyncJob:
    return SyncJob(
        job_id=claimed.job_id,
        user_id=claimed.user_id,
        github_login=claimed.github_login,
        partition_key=claimed.partition_key,
        triggered_by=claimed.triggered_by,
        backfill_days=claimed.backfill_days,
        attempt=claimed.attempt,
    )
