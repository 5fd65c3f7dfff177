"""Replaces the processes of a prefork pool whose jobs go on after their time limit.

Their handler has caught JobTimeout and goes on, or it is in C code that holds the GIL, and has not even
seen it. Only the main process can end that.
"""

from __future__ import annotations

import os
import signal
import threading
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
    ended; it may wait while Postgres is away.
    """

    memory: PoolMemory
    held: Callable[[], Iterable[Held]]
    time_out: Callable[[Held], object]
    _under_way: set[Held] = field(default_factory=set)

    def look(self) -> bool:
        """Replaces each process that is 30 s late. Always True, so that it is called again."""
        for held in self.held():
            late = held.deadline and time.monotonic() >= held.deadline + GRACE_SECONDS
            if late and held not in self._under_way:
                self._under_way.add(held)
                # In a thread of its own: it may wait for a lock, and no other process waits for it.
                threading.Thread(target=self._replace, args=(held,), daemon=True).start()
        return True

    def _replace(self, held: Held) -> None:
        try:
            self._end_and_kill(held)
        finally:
            self._under_way.discard(held)

    def _end_and_kill(self, held: Held) -> None:
        try:
            self.time_out(held)
        except SchedulerError as error:
            log.error("timed-out job not ended", job_id=str(held.job_id), reason=str(error))
            return  # the next look tries again
        # The handler may have ended meanwhile. If it is just ending, its end is recorded or it is too late.
        if self.memory.held_by(held.pid) == held:
            log.warning(
                "process killed, its job went on after its time limit",
                job_id=str(held.job_id),
                pid=held.pid,
            )
            with suppress(ProcessLookupError):
                os.kill(held.pid, signal.SIGKILL)  # Celery's pool starts another one
