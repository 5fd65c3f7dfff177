"""SQL of sync_runs by due day: which days have a daily run, and days that are recorded as missed."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

PAUSED = "paused"
"""Why a day has no run: it came while the schedule was paused."""

_MISSED = text(
    """
    INSERT INTO sync_runs AS r (run_id, partition_key, kind, triggered_by, requested_by, slot, state,
                                missed_because, created_at)
    VALUES (:run_id, :partition_key, 'daily', :triggered_by, :requested_by, :slot, 'MISSED', :because, :now)
    ON CONFLICT (partition_key) DO UPDATE SET missed_because = excluded.missed_because
        WHERE r.state = 'MISSED' AND r.missed_because = 'paused' AND excluded.missed_because IS NULL
    """
)

_DAILY_SLOTS = text(
    """
    SELECT partition_key, slot FROM sync_runs
    WHERE kind = 'daily' AND partition_key = ANY(:partition_keys)
        AND (state <> 'MISSED'
             OR created_at <= :missed_by AND (:is_paused OR missed_because IS DISTINCT FROM 'paused'))
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
    because: str | None,
    now: datetime,
) -> bool:
    """Records a day that gets no run as MISSED; False if it has a run by now, or is recorded already.

    because: PAUSED, or None if nothing triggered the day in time, also not after a pause.
    """
    parameters = {
        "run_id": run_id,
        "partition_key": partition_key,
        "triggered_by": triggered_by,
        "requested_by": requested_by,
        "slot": slot,
        "because": because,
        "now": now,
    }
    return connection.execute(_MISSED, parameters).rowcount == 1


def daily_slots(
    connection: Connection, partition_keys: list[str], *, missed_by: datetime, is_paused: bool
) -> dict[str, datetime | None]:
    """The partitions among `partition_keys` that have a daily run, or were recorded as missed until
    `missed_by`; each with its latest slot. What was missed in a pause counts only while it lasts.
    """
    parameters = {"partition_keys": partition_keys, "missed_by": missed_by, "is_paused": is_paused}
    rows = connection.execute(_DAILY_SLOTS, parameters)
    return {row.partition_key: row.slot for row in rows}
