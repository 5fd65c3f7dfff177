"""The attempts that this process runs, a thread that ends those of them that take too long, and the way to
end one whose worker is being stopped.

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
_AGAIN_SECONDS = 5.0
_PATIENCE_SECONDS = 600.0
"""How long code that has ended waits until the limit has recorded that."""

End = Callable[[ClaimedJob], Ending | None]
"""Ends a job whose time is over, in the ledger. If it raises SchedulerError, it is called again: the
heartbeat goes on for a job that has not ended, so without that it would be RUNNING as long as its code is.
"""


class RunningAttempt:
    """An attempt that this process runs. Its runner, its time limit or the stop of its worker records its
    end, and only one of them.

    handed_back: whether it is the stop of its worker, which then ends without the runner's help.
    """

    def __init__(self, job: ClaimedJob, deadline: float | None) -> None:
        self.job = job
        self._deadline = deadline
        self._not_taken = threading.Lock()
        self.handed_back = False
        self._taken_by_limit = False
        self._recorded = threading.Event()
        self._ending: Ending | None = None

    def take(self) -> bool:
        """Whether the caller is the one who records the end: the first to ask, and no other."""
        return self._not_taken.acquire(blocking=False)

    def ended_elsewhere(self) -> Ending | None:
        """The end that another than the runner recorded; waits until it has. None if it could not, or if
        the attempt no longer held its job.
        """
        self._recorded.wait(_PATIENCE_SECONDS)
        return self._ending

    def end(self, end: End) -> None:
        """Records the end, as the one who has taken it. Raises what `end` raises."""
        self._ending = end(self.job)
        self._recorded.set()

    def end_if_late(self, end: End, again_seconds: float) -> None:
        """Records the end, as the time limit, if the time is over and the runner does not record it."""
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        again = self._taken_by_limit
        self._taken_by_limit = again or self.take()
        self._deadline = None
        if not self._taken_by_limit:
            return
        try:
            self.end(end)
        except SchedulerError as error:
            if not again:  # once, however often it is tried
                log.error("timed-out job not ended", **naming(self.job), reason=str(error))
            self._deadline = time.monotonic() + again_seconds


class RunningAttempts:
    """The attempts that this process runs.

    end: ends an overdue attempt in the ledger. One thread ends all of them, so it must not wait for the
    lock of one job's row. again_seconds: when it is called again if it has failed.
    """

    def __init__(self, end: End, again_seconds: float = _AGAIN_SECONDS) -> None:
        self._end = end
        self._again_seconds = again_seconds
        self._running: dict[UUID, RunningAttempt] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def __contains__(self, job_id: UUID) -> bool:
        """Whether code of the job runs in this process, also if its attempt has been ended."""
        return job_id in self._running

    def ids(self) -> list[UUID]:
        """The jobs whose code runs in this process."""
        return list(self._running)

    def take(self, job_id: UUID) -> RunningAttempt | None:
        """The attempt at a job, to be handed back; None if it is not here, or is ending already."""
        attempt = self._running.get(job_id)
        if attempt is None or not attempt.take():
            return None
        attempt.handed_back = True
        return attempt

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
                attempt.end_if_late(self._end, self._again_seconds)
