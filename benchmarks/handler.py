"""What the measured worker does: nothing, as a job's handler and as a Celery task of its own."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import EMPTY
from worker_scheduler import app


def handle(job: Any) -> None:
    """SYNC_HANDLER."""


@app.task(name=EMPTY, shared=False)  # type: ignore[untyped-decorator]
def empty(user_id: str, partition_key: str, triggered_by: str, backfill_days: int | None = None) -> None:
    """The same arguments as `sync_user`, and nothing else."""
