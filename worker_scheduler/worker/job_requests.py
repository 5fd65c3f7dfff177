"""Celery's requests for jobs: what becomes of a job whose process is lost is written here, in the main
process, since the process itself may not be able to.

Celery calls this in the worker's main loop, before the process gets its signal or is replaced.
"""

from __future__ import annotations

import re
from typing import Any, Protocol
from uuid import UUID

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.concurrency import solo
from celery.worker import request, state

from worker_scheduler.probe_ids import is_probe
from worker_scheduler.worker.revoked import is_asked_for
from worker_scheduler.worker.termination import termination


class Listener(Protocol):
    """What is told of the requests of jobs. It must not wait for long."""

    def lost(self, pid: int, job_id: UUID, reason: str) -> None:
        """A process of the pool is gone, or about to be, that had taken the job's message."""

    def terminated(self, job_id: UUID) -> None:
        """Somebody has terminated the job, and its process or greenlet is about to be killed."""

    def cancelled(self, pid: int | None, job_id: UUID | None) -> bool:
        """The worker is being stopped, and is about to end the job's process or greenlet. Whether a job was
        taken from code of this process; the code goes on until it is ended.
        """


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Tells this listener from now on, and no other."""
    _listeners[:] = [listener]


class Request(request.Request):  # type: ignore[misc] # Celery has no types
    """Celery's request, with a listener; and an expired message does not count as revoked.

    Celery notes the id of an expired message among the revoked ones, and would discard the next message of
    the same job, which reconcile sends, as revoked.
    """

    def maybe_expire(self) -> bool:
        """Whether the message has expired."""
        revoked = self.id in state.revoked
        expired = bool(super().maybe_expire())
        if expired and not revoked:
            state.revoked.discard(self.id)
        return expired

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A task failed, or its process is lost. At a hard time limit its process still lives."""
        reason = loss_of(exc_info.exception)
        job_id = _job_of(self.id)
        if reason is not None and job_id is not None and self.worker_pid is not None:
            for listener in _listeners:
                listener.lost(self.worker_pid, job_id, reason)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """`celery control terminate`, and `revoke` with it."""
        job_id = _job_of(self.id)
        if _can_end_jobs(pool) and job_id is not None and is_asked_for(self):
            for listener in _listeners:
                listener.terminated(job_id)
        super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """The worker is being stopped; see `worker_cancel_long_running_tasks_on_connection_loss`."""
        taken = [listener.cancelled(self.worker_pid, _job_of(self.id)) for listener in _listeners]
        if _can_end_jobs(pool):
            super().cancel(pool, signal, emit_retry)
            return
        self._announce_cancelled(emit_retry=emit_retry)
        if any(taken) and isinstance(pool, solo.TaskPool):
            # This is a signal's handler above the code of the job: what it raises, that code gets.
            raise termination()


def loss_of(error: BaseException) -> str | None:
    """Why a process was lost, by what Celery says about its task; None if the task ended by itself."""
    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    if isinstance(error, TimeLimitExceeded):
        return "its process was ended at Celery's time limit"
    if isinstance(error, Terminated):
        return "its process was terminated"
    if isinstance(error, WorkerLostError):
        how = re.search(r"signal \d+ \(\w+\)|exitcode -?\d+", str(error))
        return "its process was lost" + (f", {how[0]}" if how else "")
    return None


def _can_end_jobs(pool: Any) -> bool:
    """Whether the pool can end the code of a job: prefork and gevent. In the others it goes on."""
    return bool(pool.uses_semaphore or pool.is_green)


def _job_of(task_id: str) -> UUID | None:
    try:
        job_id = UUID(task_id)
    except ValueError:
        return None
    return None if is_probe(job_id) else job_id
