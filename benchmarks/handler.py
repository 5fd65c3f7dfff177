"""What the measured worker runs: an empty job handler, and an empty Celery task."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import EMPTY
from worker_scheduler import app


def handle(job: Any) -> None:
    """Does nothing. The benchmark's SYNC_HANDLER."""


@app.task(name=EMPTY, shared=False)  # type: ignore[untyped-decorator]
def empty(user_id: str, partition_key: str, triggered_by: str, backfill_days: int | None = None) -> None:
    """Does nothing, with the same arguments as `sync_user`."""
