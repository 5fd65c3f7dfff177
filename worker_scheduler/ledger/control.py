"""SQL of pause and cancel: what somebody wants of a run or of the schedule, beside their states.

Each statement is one small UPDATE whose WHERE names what it starts from. What takes effect is the flag;
claims, planning, dispatch and reconcile ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from worker_scheduler.ledger.tables import Kind, RunState

_IS_PAUSED = "(paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > :now))"

_GET = text(
    f"""
    SELECT run_id, partition_key, kind, state, {_IS_PAUSED} AS is_paused, paused_at, paused_by,
        pause_reason, paused_until, cancelled_at, cancelled_by, cancel_reason, pruned_at, jobs AS job_count
    FROM sync_runs WHERE partition_key = :partition_key FOR UPDATE
    """
)

_STOP_OF = text(
    f"""
    SELECT {_IS_PAUSED} AS is_paused, paused_at, paused_by, pause_reason, paused_until,
        cancelled_at, cancelled_by, cancel_reason
    FROM sync_runs WHERE run_id = :run_id
    """
)

_KEYS = text("SELECT partition_key FROM sync_runs ORDER BY created_at DESC LIMIT 10000")

# Who paused first is kept; a later pause of a paused run only says until when.
_PAUSE = text(
    f"""
    UPDATE sync_runs SET paused_until = :until, resumed_at = NULL,
        paused_at = CASE WHEN {_IS_PAUSED} THEN paused_at ELSE :now END,
        paused_by = CASE WHEN {_IS_PAUSED} THEN paused_by ELSE :paused_by END,
        pause_reason = CASE WHEN {_IS_PAUSED} THEN pause_reason ELSE :reason END
    WHERE run_id = :run_id AND state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED') AND cancelled_at IS NULL
        AND pruned_at IS NULL
    """
)

_RESUMED = """
    paused_at = NULL, paused_by = NULL, pause_reason = NULL, paused_until = NULL
"""
_RESUME = text(
    f"UPDATE sync_runs SET {_RESUMED}, resumed_at = :now WHERE run_id = :run_id AND paused_at IS NOT NULL"
)
_RESUME_OVERDUE = text(
    f"""
    UPDATE sync_runs SET {_RESUMED}, resumed_at = :now
    WHERE paused_at IS NOT NULL AND paused_until <= :now RETURNING partition_key
    """
)

_CANCEL = text(
    """
    UPDATE sync_runs SET cancelled_at = :now, cancelled_by = :cancelled_by, cancel_reason = :reason
    WHERE run_id = :run_id AND state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED') AND cancelled_at IS NULL
    """
)

_CANCELLED = text(
    """
    SELECT run_id, partition_key FROM sync_runs
    WHERE state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED') AND cancelled_at IS NOT NULL ORDER BY created_at
    """
)

_RESUMED_RUNS = text(
    """
    SELECT run_id, partition_key FROM sync_runs
    WHERE resumed_at IS NOT NULL AND paused_at IS NULL ORDER BY created_at
    """
)

_RELEASED = text(
    """
    UPDATE sync_runs SET resumed_at = NULL
    WHERE run_id = :run_id AND paused_at IS NULL AND resumed_at <= :before
    """
)

_SCHEDULE = text(
    f"""
    SELECT {_IS_PAUSED} AS is_paused, paused_at, paused_by, pause_reason, paused_until FROM sync_schedule
    """
)
_PAUSE_SCHEDULE = text(
    f"""
    UPDATE sync_schedule SET paused_until = :until,
        paused_at = CASE WHEN {_IS_PAUSED} THEN paused_at ELSE :now END,
        paused_by = CASE WHEN {_IS_PAUSED} THEN paused_by ELSE :paused_by END,
        pause_reason = CASE WHEN {_IS_PAUSED} THEN pause_reason ELSE :reason END
    """
)
_RESUME_SCHEDULE = text(f"UPDATE sync_schedule SET {_RESUMED} WHERE paused_at IS NOT NULL")


@dataclass(frozen=True)
class Pause:
    """Since when, by whom, why and until when something is paused; None: until it is resumed."""

    since: datetime
    by: str | None
    reason: str | None
    until: datetime | None


@dataclass(frozen=True)
class Cancel:
    """Since when, by whom and why a run is cancelled."""

    since: datetime
    by: str | None
    reason: str | None


@dataclass(frozen=True)
class ControlledRun:
    """A run with what somebody wants of it; each None if nobody wants that."""

    run_id: UUID
    partition_key: str
    kind: Kind
    state: RunState
    job_count: int
    pruned_at: datetime | None
    pause: Pause | None
    cancel: Cancel | None


def lock(connection: Connection, partition_key: str, now: datetime) -> ControlledRun | None:
    """The run of a partition, locked until the transaction ends; None if there is none."""
    row = connection.execute(_GET, {"partition_key": partition_key, "now": now}).one_or_none()
    if row is None:
        return None
    return ControlledRun(
        run_id=row.run_id,
        partition_key=row.partition_key,
        kind=Kind(row.kind),
        state=RunState(row.state),
        job_count=row.job_count,
        pruned_at=row.pruned_at,
        pause=_pause_of(row),
        cancel=_cancel_of(row),
    )


def stop_of(connection: Connection, run_id: UUID, now: datetime) -> Pause | Cancel | None:
    """Why the run starts no job; None if it does."""
    row = connection.execute(_STOP_OF, {"run_id": run_id, "now": now}).one_or_none()
    return None if row is None else _cancel_of(row) or _pause_of(row)


def _pause_of(row: Row[Any]) -> Pause | None:
    if not row.is_paused:
        return None
    return Pause(row.paused_at, row.paused_by, row.pause_reason, row.paused_until)


def _cancel_of(row: Row[Any]) -> Cancel | None:
    if row.cancelled_at is None:
        return None
    return Cancel(row.cancelled_at, row.cancelled_by, row.cancel_reason)


def newest_keys(connection: Connection) -> list[str]:
    """The keys of the newest 10,000 runs, newest first."""
    return list(connection.execute(_KEYS).scalars())


def pause(
    connection: Connection,
    run_id: UUID,
    *,
    by: str,
    reason: str | None,
    until: datetime | None,
    now: datetime,
) -> bool:
    """Pauses a run that has not ended, or changes until when it is paused; says whether it did."""
    parameters = {"run_id": run_id, "paused_by": by, "reason": reason, "until": until, "now": now}
    return connection.execute(_PAUSE, parameters).rowcount == 1


def resume(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Ends the pause of a run; its parked jobs are to be released. Says whether it was paused."""
    return connection.execute(_RESUME, {"run_id": run_id, "now": now}).rowcount == 1


def resume_overdue(connection: Connection, now: datetime) -> list[str]:
    """Ends the pauses whose time is over; returns the keys of the runs."""
    return list(connection.execute(_RESUME_OVERDUE, {"now": now}).scalars())


def resumed(connection: Connection) -> list[tuple[UUID, str]]:
    """The runs whose parked jobs are to be released: id and key, oldest first."""
    return [(row.run_id, row.partition_key) for row in connection.execute(_RESUMED_RUNS)]


def mark_released(connection: Connection, run_id: UUID, before: datetime) -> None:
    """Notes that no parked job is left, if the run was resumed before this time and is not paused again."""
    connection.execute(_RELEASED, {"run_id": run_id, "before": before})


def cancel(connection: Connection, run_id: UUID, *, by: str, reason: str | None, now: datetime) -> bool:
    """Cancels a run that has not ended; says whether it did."""
    parameters = {"run_id": run_id, "cancelled_by": by, "reason": reason, "now": now}
    return connection.execute(_CANCEL, parameters).rowcount == 1


def cancelled(connection: Connection) -> list[tuple[UUID, str]]:
    """The cancelled runs that have not ended: id and key, oldest first."""
    return [(row.run_id, row.partition_key) for row in connection.execute(_CANCELLED)]


def schedule(connection: Connection, now: datetime) -> Pause | None:
    """The pause of the daily schedule, if there is one."""
    return _pause_of(connection.execute(_SCHEDULE, {"now": now}).one())


def pause_schedule(
    connection: Connection, *, by: str, reason: str | None, until: datetime | None, now: datetime
) -> None:
    """Pauses the daily schedule, or changes until when it is paused."""
    connection.execute(_PAUSE_SCHEDULE, {"paused_by": by, "reason": reason, "until": until, "now": now})


def resume_schedule(connection: Connection) -> bool:
    """Ends the pause of the schedule; says whether it was paused."""
    return connection.execute(_RESUME_SCHEDULE).rowcount == 1
