"""Replaces the processes of a prefork pool whose jobs go on after their time limit.

Their handler has caught JobTimeout and goes on, or it is in C code that holds the GIL, and has not even
seen it. Only the main process can end that.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError
from worker_scheduler.worker.pool_memory import Held, PoolMemory
from worker_scheduler.worker.time_limit import GRACE_SECONDS

log = logs.get_logger(__name__)

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class PoolWatch:
    """Ends jobs and kills their processes.

    held: the attempts of the pool's processes. time_out: ends one of them in the ledger, unless it has
    ended; it may wait while Postgres is away, but not for the lock of one job's row.
    """

    memory: PoolMemory
    held: Callable[[], Iterable[Held]]
    time_out: Callable[[Held], object]
    _told: set[Held] = field(default_factory=set)

    def look(self) -> bool:
        """Replaces each process that is 30 s late. Always True, so that it is called again."""
        for held in self.held():
            if held.deadline and time.monotonic() >= held.deadline + GRACE_SECONDS:
                self._replace(held)
        return True

    def _replace(self, held: Held) -> None:
        try:
            self.time_out(held)
        except SchedulerError as error:
            if held not in self._told:  # once, since each look tries again
                self._told.add(held)
                log.error("timed-out job not ended", job_id=str(held.job_id), reason=str(error))
            return
        # The handler may have ended meanwhile. If it is just ending, its end is recorded or it is too late.
        if self.memory.held_by(held.pid) == held:
            log.warning(
                "process killed, its job went on after its time limit",
                job_id=str(held.job_id),
                pid=held.pid,
            )
            with suppress(ProcessLookupError):
                os.kill(held.pid, signal.SIGKILL)  # Celery's pool starts another one
