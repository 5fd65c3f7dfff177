"""A lease, and the two kinds of heartbeat that renew one while its holder works.

A heartbeat is a thread, since one publish, one pause or one handler may take longer than the lease. It
runs while its holder runs Python, sleeps, waits for I/O, or is in C code that releases the GIL; C code
that holds the GIL stops it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from worker_scheduler import logs
from worker_scheduler.errors import SchedulerError

log = logs.get_logger(__name__)

LONGEST_LEASE_SECONDS = 60
"""The longest lease that a process may be configured with."""


@dataclass(frozen=True)
class Lease:
    """How long a lease lasts, and how often its holder renews it."""

    seconds: float

    def until(self, now: datetime) -> datetime:
        """When a lease that is taken or renewed now runs out."""
        return now + timedelta(seconds=self.seconds)

    @property
    def heartbeat_seconds(self) -> float:
        """The time between two heartbeats: three in a row may fail before the lease runs out."""
        return self.seconds / 4


@contextmanager
def heartbeat(renew: Callable[[], bool], every_seconds: float, name: str) -> Iterator[None]:
    """Calls `renew` every `every_seconds` while the block runs; stops when it returns False.

    `renew` runs in a thread of its own. A SchedulerError that it raises, such as an outage, is logged,
    and the next call tries again. After a call that took longer than `every_seconds` the next one follows
    at once: what the slow one has written may be as old as it. name: for the log and the thread.
    """
    stop = threading.Event()
    arguments = (renew, every_seconds, name, stop)
    thread = threading.Thread(target=_renew_until, args=arguments, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _renew_until(renew: Callable[[], bool], every_seconds: float, name: str, stop: threading.Event) -> None:
    due = time.monotonic() + every_seconds
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = time.monotonic() + every_seconds
        if not _renewed(renew, name):
            log.warning("lease lost", lease=name)
            return


_Held = TypeVar("_Held")

_LOOKS_PER_HEARTBEAT = 4


@dataclass(frozen=True)
class Renewal(Generic[_Held]):
    """What became of leases that were to be renewed together; those that it does not name are renewed.

    lost: another process has them by now, or they have ended. held_up: not renewed yet, since another
    transaction has locked their rows.
    """

    lost: Collection[_Held] = ()
    held_up: Collection[_Held] = ()


class SharedHeartbeat(Generic[_Held]):
    """One thread that renews all leases of a process together.

    For leases so short-lived that starting a thread for each would cost too much. `renew` gets all of them
    and must not wait for one of them, which would stop the others.
    """

    def __init__(self, renew: Callable[[Sequence[_Held]], Renewal[_Held]], every_seconds: float) -> None:
        self._renew = renew
        self._every_seconds = every_seconds
        self._leases: dict[object, tuple[_Held, str]] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def keep(self, held: _Held, name: str) -> Iterator[None]:
        """Renews a lease every `every_seconds` while the block runs; stops when it is lost.

        Does not wait for a call that is under way when the block ends, so the lease may still be renewed
        once after that; that must then change nothing.
        """
        lease = object()
        self._leases[lease] = held, name
        self._start()
        try:
            yield
        finally:
            self._leases.pop(lease, None)

    def drop(self, held: _Held) -> None:
        """Renews a lease no longer, though its block goes on."""
        for lease, (kept, _) in tuple(self._leases.items()):
            if kept == held:
                self._leases.pop(lease, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._renew_forever, name="shared heartbeat", daemon=True
                )
                self._thread.start()

    def _renew_forever(self) -> None:
        """Renews all leases at each heartbeat, and between two heartbeats those that were held up."""
        never = threading.Event()
        heartbeat_due = time.monotonic() + self._every_seconds
        held_up: Collection[_Held] = ()
        while not never.wait(self._every_seconds / _LOOKS_PER_HEARTBEAT):
            leases = dict(self._leases)
            if time.monotonic() < heartbeat_due:
                leases = {lease: named for lease, named in leases.items() if named[0] in held_up}
            else:
                heartbeat_due = time.monotonic() + self._every_seconds
            if leases:
                held_up = self._renew_together(leases)

    def _renew_together(self, leases: dict[object, tuple[_Held, str]]) -> Collection[_Held]:
        """Renews these leases and drops the lost ones; returns those that were held up."""
        try:
            renewal = self._renew([held for held, _ in leases.values()])
        except SchedulerError as error:
            first, *others = (name for _, name in leases.values())
            log.warning(
                "lease not renewed, trying again", lease=first, others=len(others), error=str(error)
            )
            return ()
        for lease, (held, name) in leases.items():
            if held in renewal.lost and self._leases.pop(lease, None) is not None:
                log.warning("lease lost", lease=name)
        return renewal.held_up


def _renewed(renew: Callable[[], bool], name: str) -> bool:
    """Whether the lease is still held. An outage does not answer that, so the lease counts as held."""
    try:
        return renew()
    except SchedulerError as error:
        log.warning("lease not renewed, trying again", lease=name, error=str(error))
        return True
