"""Writes into the ledger for a worker's main loop, which must not wait for Postgres for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError

log = logs.get_logger(__name__)

_MOST_WAITING = 10_000
_LAST_SECONDS = 5.0
"""How long a worker that is being stopped waits until everything is recorded."""


class Names(Protocol):
    """Says whose job it is."""

    def __call__(self, job_id: UUID, **in_message: str) -> dict[str, str]:
        """The fields of a log line about a job. in_message: those that its message says."""


@dataclass(frozen=True)
class _Entry:
    write: Callable[[], object]
    job_id: UUID
    in_message: dict[str, str]
    done: threading.Event = field(default_factory=threading.Event)


class Recorder:
    """Does one write after the other, in a thread. Only the main thread may call it; a signal's handler,
    too, which may interrupt the main loop in here: so this queue is one without a lock.

    names: asks the ledger; it is called in the thread.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._waiting: SimpleQueue[_Entry | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def note(
        self, job_id: UUID, write: Callable[[], object], wait_seconds: float = 0.0, **in_message: str
    ) -> None:
        """Has the end of a job written, and waits for that at most so long; it is written later, too.

        write: may wait while Postgres is away; what it raises as SchedulerError is logged.
        """
        if self._waiting.qsize() >= _MOST_WAITING:
            known = {"job_id": str(job_id), **in_message}
            log.error("end of a job not recorded", **known, reason=f"{_MOST_WAITING} others wait")
            return
        entry = _Entry(write, job_id, in_message)
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
                named = self._names(entry.job_id, **entry.in_message)
                log.error("end of a job not recorded", **named, reason=str(error))
            finally:
                entry.done.set()
