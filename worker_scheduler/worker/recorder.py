"""Writes into the ledger for a worker's main loop, which must not wait for Postgres for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError

log = logs.get_logger(__name__)

_MOST_WAITING = 10_000
_LAST_SECONDS = 5.0
"""How long a worker that is being stopped waits until everything is recorded."""


class _Entry:
    def __init__(self, write: Callable[[], object], what: dict[str, str]) -> None:
        self.write = write
        self.what = what
        self.done = threading.Event()


class Recorder:
    """Does one write after the other, in a thread. Only the main thread may call it; a signal's handler,
    too, which may interrupt the main loop in here: so this queue is one without a lock.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[_Entry | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def note(self, write: Callable[[], object], wait_seconds: float = 0.0, **what: str) -> None:
        """Has something written, and waits for that at most so long; it is written later, too.

        write: may wait while Postgres is away; what it raises as SchedulerError is logged, with `what`.
        """
        if self._waiting.qsize() >= _MOST_WAITING:
            log.error("end of a job not recorded", **what, reason=f"{_MOST_WAITING} others wait")
            return
        entry = _Entry(write, what)
        self._waiting.put(entry)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
            self._thread.start()
        entry.done.wait(wait_seconds)

    def close(self) -> None:
        """Waits up to 5 s until everything is recorded. What is not recorded by then is lost."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(_LAST_SECONDS)

    def _write_all(self) -> None:
        while (entry := self._waiting.get()) is not None:
            try:
                entry.write()
            except SchedulerError as error:
                log.error("end of a job not recorded", **entry.what, reason=str(error))
            finally:
                entry.done.set()
