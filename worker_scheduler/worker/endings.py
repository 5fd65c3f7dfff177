"""Records in a job's row how an attempt ended, and decides whether another attempt follows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

from worker_scheduler import logs, reasons
from worker_scheduler.clock import Clock
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.tables import JobStatus
from worker_scheduler.reasons import Reason
from worker_scheduler.redaction import error_text, mask_passwords
from worker_scheduler.worker.naming import naming
from worker_scheduler.worker.patience import retry_while_unavailable
from worker_scheduler.worker.retry_on import RetryOn
from worker_scheduler.worker.termination import is_killed_greenlet, is_termination
from worker_scheduler.worker.types import JobTimeout, RetryLater, SkipJob

log = logs.get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 30.0
_LONGEST_BACKOFF_SECONDS = 3600.0

_INTERRUPTIONS_PER_ATTEMPT = 3
"""Of three attempts that a stopped worker cut short, two are given back. So no deployment makes a job
FAILED that has done nothing wrong, and a job that hangs through every restart ends.
"""


class Ending(NamedTuple):
    """How an attempt ended: the state that it gave the job, and the text in the job's row."""

    status: JobStatus
    text: str | None


@dataclass(frozen=True)
class Endings:
    """Records the ends of attempts.

    max_attempts: how many attempts a job has whose row does not say. retry_on: whether an error of the
    handler is tried again.

    Each method returns how the attempt ended, or None if it no longer held the job, and raises
    StoreUnavailable if Postgres stays away for longer than a worker waits for it.
    """

    database: Database
    clock: Clock
    max_attempts: int
    retry_on: RetryOn

    def record(self, job: ClaimedJob, raised: BaseException | None) -> Ending | None:
        """Moves the job to the state that follows from what its handler raised; None: it returned."""
        if raised is None:
            return self._complete(job)
        if isinstance(raised, SkipJob):
            text = _storable(error_text(raised))
            return self._finish(job, JobStatus.SKIPPED, text, _ours(reasons.SKIPPED, text, job))
        if isinstance(raised, RetryLater):
            delay = None if raised.delay is None else max(raised.delay, timedelta(0))
            text = _storable(error_text(raised))
            return self._try_again(job, text, reasons.of_error(raised, text, job.github_login), delay)
        if is_termination(raised) or is_killed_greenlet(raised):
            return self.hand_back(job)
        return self._fail(job, raised)

    def time_out(self, job: ClaimedJob, seconds: float) -> Ending | None:
        """Ends an attempt that took longer than it may: `seconds`."""
        text = f"timed out after {seconds:g} s"
        reason = _ours(reasons.TIMED_OUT, text, job)
        log.warning("job timed out", **naming(job), seconds=seconds)
        if self.retry_on(JobTimeout()):
            return self._try_again(job, text, reason, None)
        return self._finish(job, JobStatus.FAILED, text, reason)

    def time_out_unless_locked(self, job: ClaimedJob, seconds: float) -> Ending | None:
        """As `time_out`, for a caller that ends the attempts of several jobs: raises StoreUnavailable at
        once if the job's row is locked, or if Postgres is away.
        """
        with self.database.autocommit() as connection:
            if jobs.is_locked(connection, job):
                raise StoreUnavailable("another transaction has locked the job's row")
        return self.time_out(job, seconds)

    def lose(self, job: ClaimedJob, reason: str) -> Ending | None:
        """Ends an attempt whose process is gone; another one follows at once if attempts are left."""
        log.warning("attempt lost", **naming(job), reason=reason)
        return self._try_again(job, reason, _ours(reasons.PROCESS_LOST, reason, job), timedelta(0))

    def hand_back(self, job: ClaimedJob) -> Ending | None:
        """Makes the job due at once, since its worker is being stopped: no attempt of its budget is spent,
        but every third interruption counts as one.
        """
        interruptions = job.interruptions + 1
        allowed = self._allowed(job)
        counts = interruptions % _INTERRUPTIONS_PER_ATTEMPT == 0
        if counts and job.attempt >= allowed:
            often = f"interrupted {interruptions} times by stops of its worker"
            return self._give_up(job, often, _ours(reasons.INTERRUPTED, often, job))
        log.info("job handed back, its worker is being stopped", **naming(job))
        attempts_allowed = job.attempts_allowed if counts else allowed + 1

        def hand_back() -> bool:
            now = self.clock()
            with self.database.autocommit() as connection:
                return jobs.hand_back(connection, job, attempts_allowed=attempts_allowed, now=now)

        return Ending(JobStatus.PENDING, None) if self._end(job, hand_back) else None

    def _allowed(self, job: ClaimedJob) -> int:
        return self.max_attempts if job.attempts_allowed is None else job.attempts_allowed

    def _fail(self, job: ClaimedJob, error: BaseException) -> Ending | None:
        message = _storable(f"{type(error).__name__}: {error_text(error)}")
        reason = reasons.of_error(error, message, job.github_login)
        log.warning("job failed", **naming(job), error=message, exc_info=error)
        if self.retry_on(error):
            return self._try_again(job, message, reason, None)
        return self._finish(job, JobStatus.FAILED, message, reason)

    def _try_again(
        self, job: ClaimedJob, text: str, reason: Reason, delay: timedelta | None
    ) -> Ending | None:
        """Puts the job off if attempts are left. delay: None means longer with each attempt."""
        if job.attempt >= self._allowed(job):
            return self._give_up(job, text or "RetryLater", reason)
        wait = _backoff(job.attempt) if delay is None else delay

        def put_off() -> bool:
            now = self.clock()
            with self.database.autocommit() as connection:
                return jobs.put_off(
                    connection,
                    job,
                    error_message=text or None,
                    reason=reason,
                    not_before=now + wait,
                    now=now,
                )

        return Ending(JobStatus.PENDING, text or None) if self._end(job, put_off) else None

    def _give_up(self, job: ClaimedJob, why: str, reason: Reason) -> Ending | None:
        attempts = f"{job.attempt} attempt" + ("s" if job.attempt > 1 else "")
        return self._finish(job, JobStatus.FAILED, _storable(f"gave up after {attempts}: {why}"), reason)

    def _complete(self, job: ClaimedJob) -> Ending | None:
        def complete() -> bool:
            with self.database.autocommit() as connection:
                return jobs.complete(connection, job, self.clock())

        return Ending(JobStatus.COMPLETED, None) if self._end(job, complete) else None

    def _finish(
        self,
        job: ClaimedJob,
        status: Literal[JobStatus.FAILED, JobStatus.SKIPPED],
        text: str,
        reason: Reason,
    ) -> Ending | None:
        def end() -> bool:
            with self.database.autocommit() as connection:
                return jobs.end(connection, job, status, text, reason, self.clock())

        return Ending(status, text) if self._end(job, end) else None

    def _end(self, job: ClaimedJob, step: Callable[[], bool]) -> bool:
        ended = retry_while_unavailable(step)
        if not ended:
            log.warning("job unchanged, this attempt no longer holds it", **naming(job))
        return ended


def _ours(name: str, text: str, job: ClaimedJob) -> Reason:
    return reasons.ours(name, text, job.github_login)


def _storable(text: str) -> str:
    """`text` as error_message stores it: passwords masked, at most 500 characters, no NUL."""
    encodable = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    return mask_passwords(encodable)[: jobs.LONGEST_ERROR]


def _backoff(attempt: int) -> timedelta:
    """30 s, 60 s, 120 s … up to an hour; each shortened by up to half, so that retries spread out."""
    # The exponent is bounded, since attempts are allowed to count up to thousands.
    full = min(_FIRST_BACKOFF_SECONDS * 2 ** min(attempt - 1, 30), _LONGEST_BACKOFF_SECONDS)
    return timedelta(seconds=full * random.uniform(0.5, 1.0))
