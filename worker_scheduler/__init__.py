"""A Celery-Beat-driven fan-out scheduler: one `sync_user` job per user per partition.

The public names are in `__all__`. Each is loaded when it is first used: importing this package loads
neither SQLAlchemy nor Celery, and reads no environment variable. `app` is the Celery app, which
`celery -A worker_scheduler` finds here; the other names are for the author of a handler.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    from worker_scheduler.celery_app import app
    from worker_scheduler.worker import JobTimeout, RetryLater, SkipJob, SyncJob, claim

__all__ = ["JobTimeout", "RetryLater", "SkipJob", "SyncJob", "app", "claim"]


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    if name in __all__:
        from worker_scheduler import worker  # noqa: PLC0415

        return getattr(worker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _app() -> Celery:
    """Makes the app on first use. A wrong environment ends the process: one line per fault, status 2."""
    from worker_scheduler.errors import ConfigurationError  # noqa: PLC0415

    try:
        from worker_scheduler.celery_app import app  # noqa: PLC0415
    except ConfigurationError as error:
        # Celery's command would print a traceback around it; these lines are for an operator.
        for fault in error.faults:
            print(f"worker_scheduler: {fault}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_status) from None
    return app
