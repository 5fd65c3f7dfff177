"""Runs the watchdog of reconcile in each worker of the queue `scheduler`, at Celery's signals."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from celery.signals import worker_ready, worker_shutdown, worker_shutting_down

from worker_scheduler import wiring
from worker_scheduler.maintenance.watchdog import Watchdog

_QUEUE_OF_RECONCILE = "scheduler"


def connect() -> None:
    """Lets Celery call the functions below. To call it again changes nothing."""
    worker_ready.connect(_watch_reconcile)
    worker_shutting_down.connect(_start_no_more_passes)
    worker_shutdown.connect(_stop_watching)


@dataclass
class _Watch:
    """The watchdog of this process, if it has one, and what ends it."""

    watchdog: Watchdog | None = None
    ends: ExitStack = field(default_factory=ExitStack)


_watch = _Watch()


def _watch_reconcile(sender: Any, **_: Any) -> None:
    """Starts the watchdog in a worker that takes Beat's messages for reconcile, with any pool."""
    if _QUEUE_OF_RECONCILE in sender.app.amqp.queues.consume_from:
        _watch.watchdog = wiring.watchdog(str(sender.hostname))
        _watch.ends.enter_context(_watch.watchdog.watching())


def _start_no_more_passes(**_: Any) -> None:
    if _watch.watchdog is not None:
        _watch.watchdog.start_no_more()


def _stop_watching(**_: Any) -> None:
    _watch.ends.close()
    _watch.watchdog = None
