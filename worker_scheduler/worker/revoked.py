"""Revoked jobs: what `celery control revoke` and `terminate` do to a job's row.

Celery's workers keep the ids of revoked tasks in memory and discard their messages. Without a note in the
row the job would be PENDING for as long as they do so: reconcile would send its message again, in vain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any
from uuid import UUID

from celery.worker import request, state

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError

log = logs.get_logger(__name__)

_LAST_SECONDS = 5.0
"""How long a worker that is being stopped waits until the ends of revoked jobs are recorded."""


class Request(request.Request):  # type: ignore[misc] # Celery has no types
    """Celery's request, but an expired message does not count as revoked.

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


def is_asked_for(context: Any) -> bool:
    """Whether somebody has revoked the task, by its id or by a stamp. context: that of its request.

    Celery also says "revoked" of an expired message, and of a task whose process it killed by itself.
    """
    if context.id in state.revoked:
        return True
    return any(stamp in state.revoked_stamps for stamp in context.stamped_headers or ())


class Revocations:
    """Records the ends of revoked jobs, in a thread: Celery's signal comes in the worker's main loop, which
    must not wait for Postgres.

    skip: records the end of a job; gets its id, and whether its process is being killed. It may wait while
    Postgres is away, and raises SchedulerError if it gives up.
    """

    def __init__(self, skip: Callable[[UUID, bool], None]) -> None:
        self._skip = skip
        self._noted: SimpleQueue[tuple[UUID, bool] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def note(self, job_id: UUID, killed: bool) -> None:
        """Notes that a job was revoked, and returns at once."""
        self._noted.put((job_id, killed))
        if self._thread is None:  # only the main loop calls this
            self._thread = threading.Thread(target=self._record, name="revoked jobs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Waits up to 5 s until the ends are recorded. Those not recorded by then are lost."""
        if self._thread is not None:
            self._noted.put(None)
            self._thread.join(_LAST_SECONDS)

    def _record(self) -> None:
        while (noted := self._noted.get()) is not None:
            job_id, killed = noted
            try:
                self._skip(job_id, killed)
            except SchedulerError as error:
                log.error("revoked job not skipped", job_id=str(job_id), reason=str(error))
