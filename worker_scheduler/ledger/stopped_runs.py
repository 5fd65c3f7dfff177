"""SQL of the view sync_stopped_runs: the runs whose jobs may not start, paused or cancelled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

KNOWN_FOR_SECONDS = 4.0
"""A claim by knowledge older than this is refused, so that none follows a pause after 5 s. By Postgres'
clock, so it holds also for a process that was suspended in between, and for a claim that waited for a lock.
"""

_LOOK = text("SELECT run_id, cancelled FROM sync_stopped_runs")
_NOW = text("SELECT clock_timestamp()")

IS_STOPPED = "EXISTS (SELECT FROM sync_stopped_runs s WHERE s.run_id = {run_id})"
"""The condition that a run is paused or cancelled now; for a statement about a few runs."""

_ONE = text(f"SELECT {IS_STOPPED.format(run_id='CAST(:run_id AS uuid)')}")


@dataclass(frozen=True)
class StoppedRuns:
    """The paused and the cancelled runs that had not ended, at a moment of Postgres' clock."""

    as_of: datetime
    paused: frozenset[UUID] = frozenset()
    cancelled: frozenset[UUID] = frozenset()


def look(connection: Connection) -> StoppedRuns:
    """Which runs are stopped."""
    as_of = connection.execute(_NOW).scalar_one()  # before the rows: they are at least as new
    rows = connection.execute(_LOOK).all()
    return StoppedRuns(
        as_of,
        paused=frozenset(row.run_id for row in rows if not row.cancelled),
        cancelled=frozenset(row.run_id for row in rows if row.cancelled),
    )


def is_stopped(connection: Connection, run_id: UUID) -> bool:
    """Whether the run is paused or cancelled."""
    return bool(connection.execute(_ONE, {"run_id": run_id}).scalar_one())
