"""A Celery-Beat-driven fan-out scheduler: one `sync_user` job per user per partition.

`celery -A worker_scheduler` finds `app` here. It is made on first use, so that importing the package
(for `worker_scheduler.worker.SkipJob`, say) reads no environment.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker_scheduler.celery_app import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worker_scheduler.errors import ConfigurationError  # noqa: PLC0415

    try:
        from worker_scheduler.celery_app import app  # noqa: PLC0415
    except ConfigurationError as error:
        # Celery's command would print a traceback around it; this is for an operator.
        for fault in error.faults:
            print(f"worker_scheduler: {fault}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_status) from None
    return app
