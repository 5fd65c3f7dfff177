"""SQL of sync_runs by due day: which days have a daily run, and days that are recorded as missed."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

_MISSED = text(
    """
    INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, requested_by, slot, state, created_at)
    VALUES (:run_id, :partition_key, 'daily', :triggered_by, :requested_by, :slot, 'MISSED', :now)
    ON CONFLICT (partition_key) DO NOTHING
    """
)

_DAILY_SLOTS = text(
    """
    SELECT partition_key, slot FROM sync_runs
    WHERE kind = 'daily' AND partition_key = ANY(:partition_keys)
        AND (state <> 'MISSED' OR created_at <= :missed_by)
    """
)


def record_missed(
    connection: Connection,
    *,
    run_id: UUID,
    partition_key: str,
    triggered_by: str,
    requested_by: str,
    slot: datetime,
    now: datetime,
) -> bool:
    """Records a day that gets no run as MISSED; False if it has a run by now."""
    parameters = {
        "run_id": run_id,
        "partition_key": partition_key,
        "triggered_by": triggered_by,
        "requested_by": requested_by,
        "slot": slot,
        "now": now,
    }
    return connection.execute(_MISSED, parameters).rowcount == 1


def daily_slots(
    connection: Connection, partition_keys: list[str], *, missed_by: datetime
) -> dict[str, datetime | None]:
    """The partitions among `partition_keys` that have a daily run, or were recorded as missed until
    `missed_by`; each with its latest slot.
    """
    parameters = {"partition_keys": partition_keys, "missed_by": missed_by}
    rows = connection.execute(_DAILY_SLOTS, parameters)
    return {row.partition_key: row.slot for row in rows}
