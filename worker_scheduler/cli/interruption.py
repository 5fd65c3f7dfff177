"""Ctrl-C, and SIGTERM, at a safe point: a tick ends between two batches, not inside a driver's call.

An interrupt that is raised at any other point may leave a batch published but not marked as such, and
may break psycopg or SQLAlchemy in the middle of a call, which then ends in a traceback.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from worker_scheduler.config.options import TickOptions
from worker_scheduler.config.settings import Settings
from worker_scheduler.fanout.report import Report

_SLICE_SECONDS = 0.1


class Interruption:
    """Remembers that a signal has asked this process to stop. A second one interrupts at once."""

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """Marks a safe point: raises KeyboardInterrupt if a signal has asked for an end."""
        if self._asked:
            raise KeyboardInterrupt

    def pause(self, seconds: float) -> None:
        """Sleeps for `seconds`; raises KeyboardInterrupt soon after a signal."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _SLICE_SECONDS))
        self.check()

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """Handles the signal."""
        self.check()
        self._asked = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Makes Ctrl-C and SIGTERM wait for a safe point while the block runs, in the main thread only."""
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {sent: signal.signal(sent, noted.note) for sent in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)


def finished_within(settings: Settings, options: TickOptions, report: Report) -> str:
    """When reconcile should have finished an interrupted run, in words; sending itself is not counted.

    It takes the run over within a lease and an interval, and pauses between the batches that are left.
    """
    batch_size = min(options.enqueue_batch_size or settings.enqueue_batch_size, settings.enqueue_batch_size)
    batches = math.ceil(max(0, report.users_total_selected - report.jobs_enqueued) / batch_size)
    pauses = max(0, batches - 1) * settings.enqueue_sleep_seconds
    seconds = math.ceil(settings.lease_seconds + settings.reconcile_interval_seconds + pauses)
    return f"{seconds} s" if settings.max_queue_depth is None else f"{seconds} s, if the queue has space"
