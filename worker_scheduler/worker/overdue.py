"""The attempts that this process runs, and a thread that ends those of them that take too long.

For code that cannot be interrupted: in threads, in the pool `solo`, and in another code base's task. Only
the job's row is ended; the code goes on and keeps its thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.worker.endings import Ending
from worker_scheduler.worker.naming import naming

log = logs.get_logger(__name__)

_LOOK_SECONDS = 0.5

End = Callable[[ClaimedJob], Ending | None]
"""Ends a job whose time is over, in the ledger. May raise SchedulerError."""


class RunningAttempt:
    """An attempt that this process runs. Either its runner or its time limit records its end."""

    def __init__(self, job: ClaimedJob, deadline: float | None) -> None:
        self.job = job
        self.deadline = deadline
        self._not_taken = threading.Lock()
        self._recorded = threading.Event()
        self._ending: Ending | None = None

    def take(self) -> bool:
        """Whether the caller is the one who records the end: the first to ask, and no other."""
        return self._not_taken.acquire(blocking=False)

    def ended_by_limit(self) -> Ending | None:
        """The end that the time limit recorded; waits until it has. None if it could not, or if the
        attempt no longer held its job.
        """
        self._recorded.wait()
        return self._ending

    def end(self, end: End) -> None:
        """Records the end, as the time limit."""
        try:
            self._ending = end(self.job)
        except SchedulerError as error:
            log.error("timed-out job not ended", **naming(self.job), reason=str(error))
        finally:
            self._recorded.set()


class RunningAttempts:
    """The attempts that this process runs.

    end: ends an overdue attempt in the ledger; it may wait while Postgres is away.
    """

    def __init__(self, end: End) -> None:
        self._end = end
        self._running: dict[UUID, RunningAttempt] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def __contains__(self, job_id: UUID) -> bool:
        """Whether code of the job runs in this process, also if its attempt has been ended."""
        return job_id in self._running

    def take_all(self) -> list[ClaimedJob]:
        """The jobs of all attempts whose end nobody has recorded; the caller does so now."""
        return [attempt.job for attempt in tuple(self._running.values()) if attempt.take()]

    @contextmanager
    def keep(self, job: ClaimedJob, limit_seconds: float | None) -> Iterator[RunningAttempt]:
        """An attempt that runs while the block does. limit_seconds: when the thread ends it, to about half
        a second; None: never.
        """
        deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        attempt = RunningAttempt(job, deadline)
        self._running[job.job_id] = attempt
        if deadline is not None:
            self._start()
        try:
            yield attempt
        finally:
            if self._running.get(job.job_id) is attempt:
                del self._running[job.job_id]

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_forever, name="time limits", daemon=True)
                self._thread.start()

    def _look_forever(self) -> None:
        never = threading.Event()
        while not never.wait(_LOOK_SECONDS):
            for attempt in tuple(self._running.values()):
                late = attempt.deadline is not None and time.monotonic() >= attempt.deadline
                if late and attempt.take():
                    # In a thread of its own: it may wait for a lock, and no other limit waits for it.
                    threading.Thread(target=attempt.end, args=(self._end,), daemon=True).start()
