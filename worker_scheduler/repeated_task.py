"""Tasks that are repeated while a store is unavailable, after a pause instead of by an ETA."""

from __future__ import annotations

import time
from typing import Any

from celery import Task

from worker_scheduler.config.settings import load
from worker_scheduler.errors import StoreUnavailable

_REPEATED_FOR_SECONDS = 1800
"""How long a tick is repeated, on average, while a store is unavailable."""

_LONGEST_PAUSE_SECONDS = 20
"""As long as a worker that is being stopped gives its tasks (worker_soft_shutdown_timeout)."""


def _longest_pause() -> int:
    """The seconds between two repetitions at most.

    The message is unacknowledged during the pause. If Redis gave it to another worker then, there would be
    two of it.
    """
    settings = load()
    if not settings.broker_is_redis:
        return _LONGEST_PAUSE_SECONDS
    return max(1, min(_LONGEST_PAUSE_SECONDS, settings.visibility_timeout_seconds // 3))


class RepeatedTask(Task):  # type: ignore[misc] # Celery has no types
    """A task that is repeated after a pause, without an ETA.

    A message with an ETA stays with a worker, unacknowledged, until that worker's clock says so. After each
    visibility timeout Redis gives it to one more worker, and each of them runs it.
    """

    def retry(self, *args: Any, countdown: float | None = None, **options: Any) -> Any:
        """Waits, then does what Celery's method does. countdown: seconds to wait."""
        if self.request.retries < self.max_retries:
            time.sleep(countdown or 0)
        return super().retry(*args, countdown=0, **options)


def while_unavailable() -> dict[str, Any]:
    """The options of a Celery task that is repeated while a store is unavailable.

    Each repetition continues where the one before stopped.
    """
    return {
        "base": RepeatedTask,
        "autoretry_for": (StoreUnavailable,),
        "retry_backoff": 1,
        "retry_backoff_max": _longest_pause(),
        # Celery draws each pause between 0 and its bound.
        "max_retries": 2 * _REPEATED_FOR_SECONDS // _longest_pause(),
    }
