"""SQL that asks whether a living process holds a run, by the run's lease. `runs.py` takes and renews it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.lease_sql import is_valid

_HELD = text(f"SELECT EXISTS (SELECT FROM sync_runs WHERE run_id = :run_id AND {is_valid('leased_until')})")

_BEING_PLANNED = text(
    f"""
    SELECT EXISTS (SELECT FROM sync_runs
                   WHERE run_id = :run_id AND state = 'PLANNING' AND {is_valid("leased_until")})
    """
)


def is_held(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Whether a living process plans or dispatches the run."""
    return bool(connection.execute(_HELD, {"run_id": run_id, "now": now}).scalar_one())


def is_being_planned(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Whether a living process is planning the run, so that more batches may come."""
    return bool(connection.execute(_BEING_PLANNED, {"run_id": run_id, "now": now}).scalar_one())
