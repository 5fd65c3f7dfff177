"""Claims a job, runs it under a lease, and records in its row how it ended. Knows no Celery."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple, TypeVar
from uuid import UUID

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from worker_scheduler import logs
from worker_scheduler.clock import Clock, refresh
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.leases import Lease, Renewal, SharedHeartbeat
from worker_scheduler.ledger import any_job, jobs, probes, revoked_jobs
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.jobs import ClaimedJob
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.probe_ids import is_probe
from worker_scheduler.redaction import error_text, mask_passwords
from worker_scheduler.worker.naming import name_of, naming
from worker_scheduler.worker.renewal import renew_together
from worker_scheduler.worker.returned import require_finished
from worker_scheduler.worker.termination import is_termination
from worker_scheduler.worker.types import RetryLater, SkipJob, SyncJob

log = logs.get_logger(__name__)

_PATIENCE_SECONDS = 600.0
"""How long a worker waits for Postgres to come back. Its message stays unacknowledged until then."""

_FIRST_BACKOFF_SECONDS = 30.0
_LONGEST_BACKOFF_SECONDS = 3600.0

_Result = TypeVar("_Result")


class Ending(NamedTuple):
    """How an attempt ended: the state that it gave the job, and the text in the job's row."""

    status: JobStatus
    text: str | None


@dataclass(frozen=True)
class Worker:
    """Claims jobs and finishes them.

    max_attempts: how many attempts a job has in total. heartbeat_database: connections for the heartbeat
    alone, so that jobs whose end waits for a lock cannot take them all; None: those of `database`.
    """

    database: Database
    clock: Clock
    lease: Lease
    max_attempts: int
    heartbeat_database: Database | None = None

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
                self._record(job, ending)
            except BaseException as error:  # sys.exit() and asyncio's cancellations end the body, too
                self._record(job, error)
                raise
            else:
                self._record(job, None)

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
            ending = self._record(job, raised)
        if raised is not None and is_termination(raised):
            raise raised
        return ending

    def answer_probe(self, probe_id: UUID) -> None:
        """Notes that a probe has come through its queue. Raises StoreUnavailable as `run` does."""

        def note() -> None:
            with self.database.autocommit() as connection:
                probes.note_arrival(connection, probe_id, self.clock())

        self._retry_while_unavailable(note)

    def skip_revoked(self, job_id: UUID, killed: bool) -> None:
        """Records that a job was revoked, unless it has ended. killed: also if it runs.

        Raises StoreUnavailable as `run` does.
        """
        skip = revoked_jobs.skip_unfinished if killed else revoked_jobs.skip_waiting

        def step() -> bool:
            with self.database.autocommit() as connection:
                return skip(connection, job_id, self.clock())

        if self._retry_while_unavailable(step):
            log.info("job skipped, it was revoked", **self._told(job_id))

    def _claim_or_log(self, job_id: UUID) -> ClaimedJob | None:
        if is_probe(job_id):
            self.answer_probe(job_id)
            return None
        job = self._retry_while_unavailable(lambda: self._try_to_claim(job_id))
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

        return self._retry_while_unavailable(look)

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

    def _record(self, job: ClaimedJob, raised: BaseException | None) -> Ending | None:
        """Moves the job to the state that follows from what its handler raised; None: it returned."""
        if raised is None:
            return self._finish(job, JobStatus.COMPLETED, None)
        if isinstance(raised, SkipJob):
            return self._finish(job, JobStatus.SKIPPED, _storable(error_text(raised)))
        if isinstance(raised, RetryLater):
            return self._put_off(job, raised)
        if is_termination(raised):
            return self._hand_back(job)
        return self._fail(job, raised)

    def _fail(self, job: ClaimedJob, error: BaseException) -> Ending | None:
        message = _storable(f"{type(error).__name__}: {error_text(error)}")
        log.warning("job failed", **naming(job), error=message, exc_info=error)
        return self._finish(job, JobStatus.FAILED, message)

    def _put_off(self, job: ClaimedJob, retry: RetryLater) -> Ending | None:
        reason = _storable(error_text(retry))
        if job.attempt >= self.max_attempts:
            gave_up = f"gave up after {job.attempt} attempts: {reason or 'RetryLater'}"
            return self._finish(job, JobStatus.FAILED, _storable(gave_up))
        delay = _backoff(job.attempt) if retry.delay is None else max(retry.delay, timedelta(0))
        return self._return_to_pending(job, reason or None, self.clock() + delay)

    def _hand_back(self, job: ClaimedJob) -> Ending | None:
        """Makes the job due at once, so that it need not wait for its lease to run out."""
        log.info("job handed back, its worker is being stopped", **naming(job))
        return self._return_to_pending(job, None, self.clock())

    def _finish(self, job: ClaimedJob, status: JobStatus, message: str | None) -> Ending | None:
        def finish() -> bool:
            with self.database.autocommit() as connection:
                return jobs.finish(connection, job, status, message, self.clock())

        return Ending(status, message) if self._end(job, finish) else None

    def _return_to_pending(
        self, job: ClaimedJob, reason: str | None, not_before: datetime
    ) -> Ending | None:
        def put_off() -> bool:
            with self.database.autocommit() as connection:
                return jobs.put_off(connection, job, error_message=reason, not_before=not_before)

        return Ending(JobStatus.PENDING, reason) if self._end(job, put_off) else None

    def _end(self, job: ClaimedJob, step: Callable[[], bool]) -> bool:
        ended = self._retry_while_unavailable(step)
        if not ended:
            log.warning("job unchanged, this attempt no longer holds it", **naming(job))
        return ended

    def _retry_while_unavailable(self, step: Callable[[], _Result]) -> _Result:
        """Repeats a step while Postgres is unavailable.

        If only the answer was lost, the step is repeated though it did happen. Each step names the state
        that it starts from, so the second time it changes nothing.
        """
        for attempt in Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_exponential_jitter(multiplier=0.2, max=15),
            stop=stop_after_delay(_PATIENCE_SECONDS),
            before_sleep=lambda state: log.warning(
                "waiting for Postgres", error=str(state.outcome and state.outcome.exception())
            ),
            reraise=True,
        ):
            with attempt:
                return step()
        raise AssertionError("unreachable: Retrying returns or raises")


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


def _storable(text: str) -> str:
    """`text` as error_message stores it: passwords masked, at most 500 characters, no NUL."""
    encodable = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    return mask_passwords(encodable)[: jobs.LONGEST_ERROR]


def _backoff(attempt: int) -> timedelta:
    """30 s, 60 s, 120 s … up to an hour; each shortened by up to half, so that retries spread out."""
    full = min(_FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), _LONGEST_BACKOFF_SECONDS)
    return timedelta(seconds=full * random.uniform(0.5, 1.0))
