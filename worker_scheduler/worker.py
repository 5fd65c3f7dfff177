"""The worker's side of a job: claim it, keep it while it is done, finish it. It knows no Celery.

What a handler's author needs is here: `SyncJob`, `SkipJob`, `RetryLater`; and `claim`, for a code base
that keeps its own `sync_user` task.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import TypeVar
from uuid import UUID

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from worker_scheduler.clock import Clock, utc_now
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.heartbeat import Heart
from worker_scheduler.leases import Lease
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.jobs import ClaimedJob
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.redaction import mask_passwords
from worker_scheduler.settings import load

log = structlog.get_logger(__name__)

_ERROR_LENGTH = 500
_PATIENCE_SECONDS = 600.0
"""How long a worker waits for a Postgres that is away, its message unacknowledged meanwhile."""

_FIRST_BACKOFF_SECONDS = 30.0
_LONGEST_BACKOFF_SECONDS = 3600.0
_TERMINATED = {-(256 - signal.SIGTERM), -(256 - signal.SIGQUIT)}
"""The codes with which billiard ends a process of the pool: by SIGTERM, and by SIGQUIT where
REMAP_SIGTERM=SIGQUIT makes that its signal.
"""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SyncJob:
    """One user's work in a partition, as the handler is given it."""

    job_id: UUID
    user_id: UUID
    github_login: str | None
    partition_key: str
    triggered_by: str
    backfill_days: int | None
    attempt: int


class SkipJob(Exception):
    """Raised by a handler: there is nothing to do for this user, and this is why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryLater(Exception):
    """Raised by a handler: not now. delay: seconds until the next attempt; None: backoff with jitter.

    The delay stands in Postgres, never in a Celery ETA. After SYNC_MAX_ATTEMPTS the job is FAILED.
    """

    def __init__(self, reason: str = "", delay: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.delay = timedelta(seconds=delay) if isinstance(delay, int | float) else delay


def claim(job_id: UUID | str) -> AbstractContextManager[SyncJob | None]:
    """Claims a job for the body of a `with`, and finishes it by how the body ends.

    Yields None where the job is not ours to do: leave the body then. SkipJob and RetryLater end in
    it; any other exception makes the job FAILED and goes on to the caller.
    Raises ConfigurationError, and StoreUnavailable where Postgres stays away.
    """
    return process_worker().claim(UUID(str(job_id)))


def process_worker() -> Worker:
    """This process's worker; its connections are kept from job to job. Raises ConfigurationError."""
    # By process: a connection that was opened before a fork must not be used by both sides.
    return _worker_of(os.getpid())


@cache
def _worker_of(_process_id: int) -> Worker:
    settings = load()
    # Two connections: the job's, and its heartbeat's.
    database = Database(settings.database_url.get_secret_value(), size=2, repetitive=True)
    return Worker(
        database=database,
        clock=utc_now,
        lease=settings.lease,
        max_attempts=settings.sync_max_attempts,
    )


@dataclass(frozen=True)
class Worker:
    """Claims jobs and finishes them."""

    database: Database
    clock: Clock
    lease: Lease
    max_attempts: int

    @cached_property
    def heart(self) -> Heart:
        """Keeps the leases of the jobs that run; one thread, started by the first of them."""
        return Heart(self.lease.heartbeat_seconds)

    @contextmanager
    def claim(self, job_id: UUID) -> Iterator[SyncJob | None]:
        """As the function `claim`, with this worker's database and clock."""
        claimed = self._patiently(lambda: self._claim(job_id))
        if claimed is None:
            self._log_not_ours(job_id)
            yield None
            return
        try:
            with self.heart.beating(lambda: self._extend(claimed), f"job {job_id}"):
                yield _sync_job(claimed)
        except SkipJob as skip:
            self._finish(claimed, JobStatus.SKIPPED, storable(_text_of(skip)))
        except RetryLater as retry:
            self._put_off(claimed, retry)
        except BaseException as error:  # sys.exit() and asyncio's cancellations end a handler, too
            if _is_termination(error):
                self._hand_back(claimed)
            else:
                self._fail(claimed, error)
            raise
        else:
            self._finish(claimed, JobStatus.COMPLETED, None)

    def run(self, job_id: UUID, handler: Callable[[SyncJob], object]) -> None:
        """Does a job with a handler. What the handler raises ends in the job's row and in the log.

        Raises StoreUnavailable where Postgres stays away longer than a worker waits for it.
        """
        raised: BaseException | None = None
        try:
            with self.claim(job_id) as job:
                if job is None:
                    return
                try:
                    handler(job)
                except BaseException as error:
                    raised = error
                    raise
        except BaseException as error:
            if error is not raised or _is_termination(error):
                raise

    def _claim(self, job_id: UUID) -> ClaimedJob | None:
        now = self.clock()
        with self.database.autocommit() as connection:
            return jobs.claim(connection, job_id, now, self.lease.until(now))

    def _extend(self, job: ClaimedJob) -> bool:
        with self.database.autocommit() as connection:
            return jobs.extend_lease(connection, job, self.lease.until(self.clock()))

    def _finish(self, job: ClaimedJob, status: JobStatus, message: str | None) -> None:
        def finish() -> bool:
            with self.database.autocommit() as connection:
                return jobs.finish(connection, job, status, message, self.clock())

        self._end(job, finish)

    def _fail(self, job: ClaimedJob, error: BaseException) -> None:
        message = storable(f"{type(error).__name__}: {_text_of(error)}")
        log.warning("job failed", job_id=str(job.job_id), error=message, exc_info=error)
        self._finish(job, JobStatus.FAILED, message)

    def _put_off(self, job: ClaimedJob, retry: RetryLater) -> None:
        reason = storable(_text_of(retry))
        if job.attempt >= self.max_attempts:
            gave_up = f"gave up after {job.attempt} attempts: {reason or 'RetryLater'}"
            self._finish(job, JobStatus.FAILED, storable(gave_up))
            return
        delay = _backoff(job.attempt) if retry.delay is None else max(retry.delay, timedelta(0))
        self._return_to_pending(job, reason or None, self.clock() + delay)

    def _hand_back(self, job: ClaimedJob) -> None:
        """The pool is being stopped: the job need not wait for its lease to run out."""
        log.info("job handed back, its worker is being stopped", job_id=str(job.job_id))
        self._return_to_pending(job, None, self.clock())

    def _return_to_pending(self, job: ClaimedJob, reason: str | None, not_before: datetime) -> None:
        def put_off() -> bool:
            with self.database.autocommit() as connection:
                return jobs.put_off(connection, job, error_message=reason, not_before=not_before)

        self._end(job, put_off)

    def _end(self, job: ClaimedJob, step: Callable[[], bool]) -> None:
        if not self._patiently(step):
            log.warning("job was no longer ours, its result is dropped", job_id=str(job.job_id))

    def _log_not_ours(self, job_id: UUID) -> None:
        with self.database.autocommit() as connection:
            status = jobs.status_of(connection, job_id)
        log.info("message ignored, its job does not wait", job_id=str(job_id), status=status or "unknown")

    def _patiently(self, step: Callable[[], _Result]) -> _Result:
        """Repeats a guarded step, which may have happened although its answer was lost."""
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


def storable(text: str) -> str:
    """`text` as error_message holds it: passwords masked, at most 500 characters, no NUL."""
    encodable = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    return mask_passwords(encodable)[:_ERROR_LENGTH]


def _backoff(attempt: int) -> timedelta:
    """30 s, 60 s, 120 s … up to an hour, each between half and all of it, so that retries spread."""
    full = min(_FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1), _LONGEST_BACKOFF_SECONDS)
    return timedelta(seconds=full * random.uniform(0.5, 1.0))


def _is_termination(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in _TERMINATED


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a handler's own __str__ may raise anything
        return "(its text cannot be shown)"
