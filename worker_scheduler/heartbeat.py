"""A heartbeat: one thread that renews a lease while its owner works. It decides nothing by itself.

A thread, since one publish, one pause or one handler may take longer than the lease. It beats while
the owner runs Python, sleeps, waits for I/O or sits in C code that lets the GIL go; code that holds
the GIL stops it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from worker_scheduler.errors import SchedulerError

log = structlog.get_logger(__name__)


@contextmanager
def beating(renew: Callable[[], bool], every_seconds: float, name: str) -> Iterator[None]:
    """Calls `renew` now and then meanwhile, until it says that the lease is no longer ours."""
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(renew, every_seconds, name, stop), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _beat(renew: Callable[[], bool], every_seconds: float, name: str, stop: threading.Event) -> None:
    while not stop.wait(every_seconds):
        try:
            if not renew():
                log.warning("lease is no longer ours", lease=name)
                return
        except SchedulerError as error:
            log.warning("lease not renewed, trying again", lease=name, error=str(error))
