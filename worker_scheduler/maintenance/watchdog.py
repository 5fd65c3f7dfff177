"""The watchdog of a worker of the queue `scheduler`: it sees to it that reconcile goes on.

Beat's messages wait where the worker's pool is full of long jobs, and there are none while Beat is down. So
a thread of the worker's main process looks when the last pass began, and if that is too long ago, it starts
a pass itself. It does not ask why: a pass is safe at any time, and what reconcile fixes does not wait.

The pass runs in a child process. In a thread of the main process it would take the GIL from Celery's event
loop for as long as it plans and publishes, use kombu in a process in which Celery has replaced kombu's
locks, hold locks and connections while the pool forks, and could not be cut off when the worker stops.
A child can be killed at any moment: everything that a pass takes has a lease.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from worker_scheduler import logs
from worker_scheduler.clock import Clock, refresh
from worker_scheduler.errors import SchedulerError
from worker_scheduler.ledger.database import Database
from worker_scheduler.maintenance import reconciler

log = logs.get_logger(__name__)

OVERDUE_INTERVALS = 1.5
"""Of intervals, from the beginning of one pass until the next one is overdue. Messages come one interval
apart, and some wait for half an interval where all is well.
"""
_LOOKS_PER_INTERVAL = 4
_MOST_PASSES = 2
"""Child processes at once: a pass that sends a large run takes its time, and a second one does the rest."""
_LONGEST_PASS_SECONDS = 600.0
"""After that a pass is cut off: it may hang, and the next one goes on where it was."""
_STOP_SECONDS = 1.0


@dataclass
class _Pass:
    """A child process, and when it began by the monotonic clock."""

    process: subprocess.Popen[bytes]
    began: float

    def has_ended(self) -> bool:
        """Whether the process has ended. Ends it if it took too long."""
        if time.monotonic() > self.began + _LONGEST_PASS_SECONDS and self.process.poll() is None:
            log.warning("reconcile pass cut off, it took too long", seconds=_LONGEST_PASS_SECONDS)
            self.process.kill()
        return self.process.poll() is not None


@dataclass
class Watchdog:
    """Starts overdue passes. interval: of reconcile. command: of the process that runs the pass which has
    begun at a time; the process must end with this one.
    """

    database: Database
    clock: Clock
    interval: timedelta
    command: Callable[[datetime], list[str]]
    _passes: list[_Pass] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _blind: bool = False
    _no_more: bool = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks in a thread while the block runs; then ends the passes that it has started.

        A worker that has just started gets the time to take the messages that wait.
        """
        thread = threading.Thread(target=self._watch, name="reconcile watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            # It may be waiting for Postgres, for which the worker's end must not wait.
            thread.join(_STOP_SECONDS)
            for started in self._passes:
                started.process.kill()
                started.process.wait()

    def start_no_more(self) -> None:
        """Lets passes go on, but starts no other one. Takes no lock, so a signal handler may call it."""
        self._no_more = True

    def look(self) -> None:
        """Starts a pass if it is overdue. An outage is logged once when it begins."""
        self._passes = [started for started in self._passes if not started.has_ended()]
        if self._no_more or len(self._passes) >= _MOST_PASSES:
            return
        try:
            self._start_if_overdue()
        except (SchedulerError, OSError) as error:
            if not self._blind:
                log.warning("reconcile watchdog cannot look, trying again", error=str(error))
            self._blind = True
        else:
            self._blind = False
        finally:
            # The pool may fork at any time, and must not inherit a connection.
            self.database.dispose()

    def _start_if_overdue(self) -> None:
        refresh(self.clock)
        begun_at = reconciler.begin_pass(self.database, self.clock, self.interval, OVERDUE_INTERVALS)
        if begun_at is None or self._stop.is_set():
            return
        log.warning("reconcile is overdue, this worker starts a pass beside its jobs")
        process = subprocess.Popen(self.command(begun_at), stdin=subprocess.DEVNULL)
        self._passes.append(_Pass(process, time.monotonic()))

    def _watch(self) -> None:
        interval = self.interval.total_seconds()
        wait = interval * OVERDUE_INTERVALS
        while not self._stop.wait(wait):
            self.look()
            wait = interval / _LOOKS_PER_INTERVAL
