"""Makes anew for a test what a process makes once, from the environment of then: app and worker."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import kombu.pools

import worker_scheduler
from worker_scheduler import worker

_MADE_FROM_THE_ENVIRONMENT = ("celery_app", "tasks", "wiring")


@contextmanager
def fresh_app() -> Iterator[None]:
    """Whatever imports the app meanwhile gets one that was made from the environment of now."""
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
    if worker._worker_of.cache_info().currsize:
        worker._worker_of(os.getpid()).database.dispose()
        worker._worker_of.cache_clear()
