"""Claims a job, runs it under a lease, and records in its row how it ended. Knows no Celery."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.clock import Clock, refresh
from worker_scheduler.errors import SchedulerError
from worker_scheduler.leases import Lease, Renewal, SharedHeartbeat
from worker_scheduler.ledger import revoked_jobs
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.worker.claimer import Claimer
from worker_scheduler.worker.endings import Ending, Endings
from worker_scheduler.worker.naming import name_of, naming
from worker_scheduler.worker.overdue import RunningAttempt, RunningAttempts
from worker_scheduler.worker.patience import retry_while_unavailable
from worker_scheduler.worker.pool_memory import PoolMemory
from worker_scheduler.worker.renewal import renew_together
from worker_scheduler.worker.retry_on import RetryOn, never
from worker_scheduler.worker.returned import require_finished
from worker_scheduler.worker.stopped_runs import StoppedRunsWatch
from worker_scheduler.worker.termination import is_termination
from worker_scheduler.worker.time_limit import call, limits
from worker_scheduler.worker.types import RetryLater, SkipJob, SyncJob

log = logs.get_logger(__name__)

_STOP_SECONDS = 1.0
"""How long a process that is terminated waits to hear that its whole worker is being stopped. A platform
signals all processes at once, and the main process may be the last to handle it.
"""


@dataclass(frozen=True)
class Worker:
    """Claims jobs and finishes them.

    max_attempts, retry_on: as for Endings. heartbeat_database: connections for the heartbeat
    alone, so that jobs whose end waits for a lock cannot take them all; None: those of `database`.
    timeout_seconds: how long an attempt may take; None: as long as it needs. memory: what this process
    shares with the others of its prefork worker; None: it has none.
    """

    database: Database
    clock: Clock
    lease: Lease
    max_attempts: int
    retry_on: RetryOn = never
    heartbeat_database: Database | None = None
    timeout_seconds: float | None = None
    memory: PoolMemory | None = None

    def __post_init__(self) -> None:
        # Made now: jobs in several threads must share them.
        _ = self.endings, self.shared_heartbeat, self.running

    @cached_property
    def endings(self) -> Endings:
        """Records how this worker's attempts end."""
        return Endings(self.database, self.clock, self.max_attempts, self.retry_on)

    @cached_property
    def shared_heartbeat(self) -> SharedHeartbeat[ClaimedJob]:
        """Renews the leases of the jobs that run; one thread, started by the first of them."""
        return SharedHeartbeat(self._renew, self.lease.heartbeat_seconds)

    @cached_property
    def stopped_runs(self) -> StoppedRunsWatch:
        """The paused and cancelled runs, whose jobs this worker does not start."""
        return StoppedRunsWatch(self.database)

    @cached_property
    def claimer(self) -> Claimer:
        """Claims the jobs of messages."""
        return Claimer(self.database, self.clock, self.lease, self.stopped_runs, self.running)

    @cached_property
    def running(self) -> RunningAttempts:
        """The attempts that this process runs."""
        return RunningAttempts(self._end_overdue)

    @contextmanager
    def claim(self, job_id: UUID) -> Iterator[SyncJob | None]:
        """Does what `worker_scheduler.claim` says, with this worker's database and clock."""
        job = self.claimer.claim(job_id)
        if job is None:
            yield None
            return
        with self._renewing(job, self.timeout_seconds) as attempt:
            try:
                yield self._sync_job(job)
            except (SkipJob, RetryLater) as ending:
                self._record(attempt, ending)
            except BaseException as error:  # sys.exit() and asyncio's cancellations end the body, too
                self._load_retry_on(error)
                self._record(attempt, error)
                raise
            else:
                self._record(attempt, None)

    def run(self, job_id: UUID, handler: Callable[[SyncJob], object]) -> Ending | None:
        """Does a job with a handler. What the handler raises goes into the job's row and the log only.

        Returns how the attempt ended; None if the job was not waiting, or was taken away from this attempt.

        Raises StoreUnavailable if Postgres stays unavailable for longer than a worker waits for it, and
        SystemExit if the pool stops this process.
        """
        job = self.claimer.claim(job_id)
        if job is None:
            return None
        interruption, limit_in_ledger = limits(self.timeout_seconds, self._in_pool)
        with self._renewing(job, limit_in_ledger) as attempt, self._noting(job):
            raised, timed_out = call(lambda: self._call(handler, job), interruption)
            self._note(job, limit_seconds=None)  # nothing may interrupt what follows
            ending = self._record(attempt, raised, timed_out)
        if raised is not None and is_termination(raised) and not attempt.handed_back:
            raise raised
        return ending

    def take_from_runner(self, job_id: UUID) -> Callable[[], None] | None:
        """Takes a job from the code that runs it in this process, since the worker is being stopped.
        Whatever that code still does, its end changes nothing.

        Returns what hands the job back in the ledger, to be called; None if the job is not here, or if its
        end is being recorded.
        """
        attempt = self.running.take(job_id)
        if attempt is None:
            return None
        self.shared_heartbeat.drop(attempt.job)
        return partial(attempt.end, self.endings.hand_back)

    def answer_probe(self, probe_id: UUID) -> None:
        """Notes that a probe has come through its queue. Raises StoreUnavailable as `run` does."""
        self.claimer.answer_probe(probe_id)

    def hand_back_all(self) -> None:
        """Makes the jobs that still run here due elsewhere, since this process is about to end."""
        for job_id in self.running.ids():
            hand_back = self.take_from_runner(job_id)
            try:
                if hand_back is not None:
                    hand_back()
            except SchedulerError as error:  # its lease runs out
                log.error("job not handed back", job_id=str(job_id), reason=str(error))

    def skip_revoked(self, job_id: UUID, killed: bool) -> None:
        """Records that a job was revoked, unless it has ended. killed: also if it runs.

        Raises StoreUnavailable as `run` does.
        """
        skip = revoked_jobs.skip_unfinished if killed else revoked_jobs.skip_waiting

        def step() -> bool:
            with self.database.autocommit() as connection:
                return skip(connection, job_id, self.clock())

        if retry_while_unavailable(step):
            log.info("job skipped, it was revoked", **self.claimer.told(job_id))

    def _call(self, handler: Callable[[SyncJob], object], job: ClaimedJob) -> None:
        try:
            require_finished(handler(self._sync_job(job)))
        except BaseException as error:
            self._load_retry_on(error)
            raise

    def _load_retry_on(self, error: BaseException) -> None:
        """Imports the classes of SYNC_RETRY_ON while the time limit still holds: it may take for ever."""
        if not (isinstance(error, SkipJob | RetryLater) or is_termination(error)):
            self.retry_on(error)

    @property
    def _in_pool(self) -> bool:
        return self.memory is not None and self.memory.entered

    @contextmanager
    def _noting(self, job: ClaimedJob) -> Iterator[None]:
        """Lets the main process of a prefork worker know which attempt this process holds.

        The note stays if this process ends before it has recorded the end: the main process then does.
        """
        self._note(job, self.timeout_seconds)
        try:
            yield
        except Exception:  # the process goes on
            self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        if self.memory is not None:
            self.memory.clear()

    def _note(self, job: ClaimedJob, limit_seconds: float | None) -> None:
        if self.memory is not None:
            deadline = 0.0 if limit_seconds is None else time.monotonic() + limit_seconds
            self.memory.note(job.job_id, job.attempt, deadline)

    def _record(
        self, attempt: RunningAttempt, raised: BaseException | None, timed_out: bool = False
    ) -> Ending | None:
        """Records how an attempt ended. timed_out: whether it was interrupted; then what it made of that
        counts only if it asks for something else by SkipJob or RetryLater.
        """
        if not attempt.take():
            if attempt.handed_back:
                log.warning("code of a handed-back job has ended", **naming(attempt.job))
            else:
                log.warning("code of a timed-out job has ended", **naming(attempt.job))
            return attempt.ended_elsewhere()
        if timed_out and self.timeout_seconds and not isinstance(raised, SkipJob | RetryLater):
            return self.endings.time_out(attempt.job, self.timeout_seconds)
        if raised is not None and is_termination(raised) and not self._is_being_stopped():
            return self.endings.lose(attempt.job, "its process was terminated")
        return self.endings.record(attempt.job, raised)

    def _is_being_stopped(self) -> bool:
        """Whether the whole worker is being stopped, not only this process. Without its memory, yes."""
        return self.memory is None or not self._in_pool or self.memory.wait_for_stop(_STOP_SECONDS)

    def _end_overdue(self, job: ClaimedJob) -> Ending | None:
        # By the heartbeat's connections: the ends of other jobs may wait for locks with all the others.
        endings = replace(self.endings, database=self.heartbeat_database or self.database)
        ending = endings.time_out_unless_locked(job, self.timeout_seconds or 0.0)
        self.shared_heartbeat.drop(job)
        log.warning("timed-out job still holds a thread, its code goes on", **naming(job))
        return ending

    def _sync_job(self, claimed: ClaimedJob) -> SyncJob:
        return SyncJob(
            job_id=claimed.job_id,
            user_id=claimed.user_id,
            github_login=claimed.github_login,
            partition_key=claimed.partition_key,
            triggered_by=claimed.triggered_by,
            backfill_days=claimed.backfill_days,
            attempt=claimed.attempt,
            _is_cancelled=partial(self.stopped_runs.is_cancelled, claimed.run_id),
        )

    @contextmanager
    def _renewing(self, job: ClaimedJob, limit_seconds: float | None) -> Iterator[RunningAttempt]:
        """Keeps the lease until the end is recorded: that may take as long as a lock or an outage."""
        with (
            self.shared_heartbeat.keep(job, name_of(job)),
            self.running.keep(job, limit_seconds) as attempt,
        ):
            yield attempt

    def _renew(self, held: Sequence[ClaimedJob]) -> Renewal[ClaimedJob]:
        refresh(self.clock)
        database = self.heartbeat_database or self.database
        return renew_together(database, self.clock, self.lease, held)
