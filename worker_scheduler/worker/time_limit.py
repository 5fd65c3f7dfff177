"""Interrupts a handler that takes longer than JOB_TIMEOUT_SECONDS, where its code can be interrupted.

In a process of a prefork pool, a timer's signal raises JobTimeout in the handler; in a gevent pool, a timer
throws it into the handler's greenlet. Elsewhere the code cannot be interrupted: see `overdue.py`.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, Protocol

from worker_scheduler.worker.types import JobTimeout

GRACE_SECONDS = 30.0
"""How long a handler has after JobTimeout to clean up. Then its process is replaced, or its greenlet
killed.
"""


class Interruption(Protocol):
    """Raises JobTimeout, once, in the code that runs between `start` and `stop`.

    raised: whether it has done so.
    """

    raised: bool

    def start(self) -> None:
        """Starts to measure."""

    def stop(self) -> None:
        """Nothing is raised after this. May be called twice."""


class Called(NamedTuple):
    """How a call ended. raised: None if it returned. timed_out: whether it was interrupted."""

    raised: BaseException | None
    timed_out: bool


def call(function: Callable[[], object], interruption: Interruption) -> Called:
    """Calls a function until it ends or is interrupted, and raises nothing."""
    raised: BaseException | None = None
    try:
        interruption.start()
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - sys.exit() and asyncio's cancellations end it, too
            raised = error
        interruption.stop()
    except JobTimeout as late:  # in between: the function had just ended
        interruption.stop()
        raised = late
    return Called(raised, interruption.raised)


class NoInterruption:
    """For code that cannot be interrupted, or has no limit."""

    raised = False

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""


class Alarm:
    """By SIGALRM, which interrupts Python code, sleeps and I/O of the main thread of this process. C code
    is interrupted when it returns.

    A timer that the process has set before waits until this one is stopped.
    """

    def __init__(self, seconds: float) -> None:
        self.raised = False
        self._seconds = seconds
        self._armed = False
        self._earlier: Any = None
        self._earlier_timer = (0.0, 0.0)
        self._started = 0.0

    def start(self) -> None:
        """Starts the timer."""
        self._earlier = signal.signal(signal.SIGALRM, self._ring)
        self._started = time.monotonic()
        self._armed = True
        self._earlier_timer = signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        """Stops the timer. A signal that has come but was not yet handled raises nothing."""
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._earlier or signal.SIG_DFL)  # None: set by other than Python
        left, interval = self._earlier_timer
        if left:
            waited = time.monotonic() - self._started
            signal.setitimer(signal.ITIMER_REAL, max(left - waited, 0.001), interval)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        if self._armed and not self.raised:
            self.raised = True
            raise JobTimeout(f"after {self._seconds:g} s")


class GreenletTimer:
    """By gevent, which interrupts a greenlet that waits. One that still waits 30 s later is killed."""

    def __init__(self, greenlet: Any, seconds: float) -> None:
        self.raised = False
        self._greenlet = greenlet
        self._seconds = seconds
        self._timers: list[Any] = []

    def start(self) -> None:
        """Starts both timers."""
        gevent = sys.modules["gevent"]
        for seconds, error in (
            (self._seconds, JobTimeout(f"after {self._seconds:g} s")),
            (self._seconds + GRACE_SECONDS, gevent.GreenletExit()),
        ):
            timer = gevent.get_hub().loop.timer(seconds)
            timer.start(self._throw, error)
            self._timers.append(timer)

    def stop(self) -> None:
        """Stops both timers."""
        while self._timers:
            timer = self._timers.pop()
            timer.stop()
            timer.close()

    def _throw(self, error: BaseException) -> None:
        self.raised = True
        self._greenlet.throw(error)


def limits(seconds: float | None, in_pool: bool) -> tuple[Interruption, float | None]:
    """What interrupts a handler in this thread, and the seconds after which the limit ends its job in the
    ledger. in_pool: whether this is a process of a prefork pool.
    """
    if seconds is None:
        return NoInterruption(), None
    if in_pool and threading.current_thread() is threading.main_thread():
        return Alarm(seconds), None  # the main process sees to what goes on after it
    greenlet = greenlet_of_a_pool()
    if greenlet is not None:
        return GreenletTimer(greenlet, seconds), seconds + 2 * GRACE_SECONDS
    return NoInterruption(), seconds


def greenlet_of_a_pool() -> Any | None:
    """The greenlet of gevent that runs this code; None if it runs in a thread or a process."""
    gevent = sys.modules.get("gevent")
    current = None if gevent is None else gevent.getcurrent()
    return current if gevent is not None and isinstance(current, gevent.Greenlet) else None
