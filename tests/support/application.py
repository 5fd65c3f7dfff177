"""Makes the app and the worker again for a test; a process otherwise makes them once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import kombu.pools

import worker_scheduler
from worker_scheduler import wiring

_MADE_FROM_THE_ENVIRONMENT = ("celery_app", "tasks")


@contextmanager
def fresh_app() -> Iterator[None]:
    """Inside the block, the app is made again from the current environment when it is first imported."""
    _forget()
    try:
        yield
    finally:
        kombu.pools.reset()
        _forget()


def _forget() -> None:
    for name in _MADE_FROM_THE_ENVIRONMENT:
        sys.modules.pop(f"worker_scheduler.{name}", None)
        vars(worker_scheduler).pop(name, None)
    worker = wiring._workers.pop(os.getpid(), None)
    if worker is not None:
        for database in (worker.database, worker.heartbeat_database):
            if database is not None:
                database.dispose()
