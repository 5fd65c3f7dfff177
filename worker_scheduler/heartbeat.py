"""A heartbeat: a thread that renews a lease while its owner works. It decides nothing by itself.

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
        if not _renewed(renew, name):
            log.warning("lease is no longer ours", lease=name)
            return


_Lease = tuple[Callable[[], bool], str]


class Heart:
    """One thread for all leases of a process, where they come and go faster than a thread starts."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._leases: dict[object, _Lease] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def beating(self, renew: Callable[[], bool], name: str) -> Iterator[None]:
        """As the function `beating`; a last call may come just after the end, where it finds nothing."""
        lease = object()
        self._leases[lease] = renew, name
        self._start()
        try:
            yield
        finally:
            self._leases.pop(lease, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)
                self._thread.start()

    def _beat(self) -> None:
        never = threading.Event()
        while not never.wait(self._every_seconds):
            for lease, (renew, name) in tuple(self._leases.items()):
                if not _renewed(renew, name) and self._leases.pop(lease, None) is not None:
                    log.warning("lease is no longer ours", lease=name)


def _renewed(renew: Callable[[], bool], name: str) -> bool:
    """False where the lease is another's; an outage says nothing about that."""
    try:
        return renew()
    except SchedulerError as error:
        log.warning("lease not renewed, trying again", lease=name, error=str(error))
        return True
