"""Stops a worker whose pool has no processes of its own: `threads`, `gevent`, `eventlet` or `solo`.

Celery's soft shutdown waits in the signal's handler and then cancels the jobs. Without processes neither
works: in `solo` the job stands still meanwhile, and then fails since the pool cannot kill it; in `threads`
the worker waits for its threads without end; in `gevent` the wait is refused. So here the jobs go on for as
long as a soft shutdown lasts. Those that have not ended by then are handed back, and the process ends with
their code in it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import signals
from celery.apps.worker import REMAP_SIGTERM
from celery.worker import state

from worker_scheduler import logs

log = logs.get_logger(__name__)

_LAST_SECONDS = 2.0
"""How long each of the last two steps may take, in a platform's 30 s: 20 of them are for jobs."""
_POLL_SECONDS = 0.2
_EXIT_STATUS = 1
"""As Celery's after a cold shutdown."""


@dataclass
class DeadlineStop:
    """seconds: how long jobs may go on after the signal. hand_back_all: makes jobs that still run here due
    elsewhere; it may take as long as Postgres is away.
    """

    worker_name: str
    seconds: float
    hand_back_all: Callable[[], object]
    _begun: bool = False
    _at_once: bool = False

    def watch(self) -> None:
        """Takes the signals over that would begin Celery's cold shutdown. To be called once Celery has its
        handlers. In a worker that runs in a thread there are none.
        """
        if threading.current_thread() is threading.main_thread():
            # It runs already when the signal comes: gevent starts no greenlet in a signal's handler.
            threading.Thread(target=self._end_late, name="deadline", daemon=True).start()
            for number in _cold_signals():
                signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: Any) -> None:
        """At the first signal the worker takes no more messages, and jobs go on; at the second one they are
        handed back at once. It takes no lock, since it may come while this thread holds any.
        """
        if self._begun:
            self._at_once = True
            return
        self._begun = True
        signals.worker_shutting_down.send(
            sender=self.worker_name, sig=signal.Signals(number).name, how="Warm", exitcode=os.EX_OK
        )
        state.should_stop = os.EX_OK

    def _end_late(self) -> None:
        while not self._begun:
            time.sleep(_POLL_SECONDS)
        log.warning("worker is being stopped, its jobs may go on for a while", seconds=self.seconds)
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline and not self._at_once:
            time.sleep(_POLL_SECONDS)
        # In a thread of its own: while Postgres is away, the process must end all the same.
        handing_back = threading.Thread(target=self.hand_back_all, name="hand back", daemon=True)
        handing_back.start()
        handing_back.join(_LAST_SECONDS)
        time.sleep(_LAST_SECONDS)  # jobs that were just ending record that
        os._exit(_EXIT_STATUS)


def _cold_signals() -> tuple[signal.Signals, ...]:
    return (signal.SIGQUIT, signal.SIGTERM) if REMAP_SIGTERM == "SIGQUIT" else (signal.SIGQUIT,)
