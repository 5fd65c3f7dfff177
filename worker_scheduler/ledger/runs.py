"""SQL of sync_runs: opens, reads and moves runs. Each move names the state it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.tables import Kind, RunState


@dataclass(frozen=True)
class Run:
    """A row of sync_runs, as much of it as the code asks for."""

    run_id: UUID
    partition_key: str
    kind: Kind
    triggered_by: str
    backfill_days: int | None
    state: RunState
    jobs: int
    batches: int
    created_at: datetime
    enqueued_at: datetime | None
    finished_at: datetime | None
    completed: int | None
    failed: int | None
    skipped: int | None
    pruned_at: datetime | None


@dataclass(frozen=True)
class NewRun:
    """What a tick asks for. selected_user_ids: None means every user."""

    run_id: UUID
    partition_key: str
    kind: Kind
    triggered_by: str
    backfill_days: int | None
    selected_user_ids: Sequence[UUID] | None
    requested_by: str | None
    slot: datetime | None


_COLUMNS = (
    "run_id, partition_key, kind, triggered_by, backfill_days, state, jobs, batches,"
    " created_at, enqueued_at, finished_at, completed, failed, skipped, pruned_at"
)

# A partition that exists is planned again from the start, so that users who are new since then get
# their job. While an earlier selection is still being planned, nobody of it may be forgotten: the
# selections are united. Another kind, other backfill_days, or a run whose jobs were pruned: no row comes
# back.
_OPEN = text(
    f"""
    INSERT INTO sync_runs AS r (run_id, partition_key, kind, triggered_by, backfill_days,
        selected_user_ids, requested_by, slot, state, leased_until, created_at)
    VALUES (:run_id, :partition_key, :kind, :triggered_by, :backfill_days,
        CAST(:selected_user_ids AS uuid[]), :requested_by, :slot, 'PLANNING', :leased_until, :now)
    ON CONFLICT (partition_key) DO UPDATE SET
        state = 'PLANNING',
        planned_through = NULL,
        jobs_before = r.jobs,
        leased_until = excluded.leased_until,
        finished_at = NULL,
        completed = NULL,
        failed = NULL,
        skipped = NULL,
        slot = greatest(r.slot, excluded.slot),
        requested_by = excluded.requested_by,
        selected_user_ids = CASE
            WHEN r.state <> 'PLANNING' THEN excluded.selected_user_ids
            WHEN r.selected_user_ids IS NULL OR excluded.selected_user_ids IS NULL THEN NULL
            ELSE ARRAY(SELECT unnest(r.selected_user_ids)
                       UNION SELECT unnest(excluded.selected_user_ids))
        END
    WHERE r.state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED', 'FINISHED', 'MISSED')
        AND r.pruned_at IS NULL
        AND r.kind = excluded.kind
        AND r.backfill_days IS NOT DISTINCT FROM excluded.backfill_days
    RETURNING {_COLUMNS}
    """
)

_GET = text(f"SELECT {_COLUMNS} FROM sync_runs WHERE partition_key = :partition_key")

_LATEST = text(f"SELECT {_COLUMNS} FROM sync_runs ORDER BY created_at DESC LIMIT :limit")

# enqueued_at: of its last batch, so that a run that is only looked at again does not seem young; and never
# backwards, since who looks for its messages knows the run by it.
_ENQUEUED = text(
    """
    UPDATE sync_runs SET state = 'ENQUEUED', leased_until = NULL,
        enqueued_at = coalesce(greatest(enqueued_at, (SELECT max(b.enqueued_at) FROM sync_batches b
                                                      WHERE b.run_id = :run_id)), :now)
    WHERE run_id = :run_id AND state = 'DISPATCHING'
        AND NOT EXISTS (SELECT FROM sync_batches b
                        WHERE b.run_id = :run_id AND b.enqueued_at IS NULL)
    """
)


_BEING_PLANNED = text(
    """
    SELECT EXISTS (SELECT FROM sync_runs
                   WHERE run_id = :run_id AND state = 'PLANNING' AND leased_until > :now)
    """
)

_AT_WORK = "state IN ('PLANNING', 'DISPATCHING')"

_RENEW = text(f"UPDATE sync_runs SET leased_until = :leased_until WHERE run_id = :run_id AND {_AT_WORK}")

_RELEASE = text(f"UPDATE sync_runs SET leased_until = NULL WHERE run_id = :run_id AND {_AT_WORK}")

# SKIP LOCKED: reconcilers that meet take different runs.
_TAKE_OVER = text(
    f"""
    UPDATE sync_runs SET leased_until = :leased_until
    WHERE run_id = (SELECT run_id FROM sync_runs
                    WHERE {_AT_WORK} AND (leased_until IS NULL OR leased_until <= :now)
                    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
        AND {_AT_WORK} AND (leased_until IS NULL OR leased_until <= :now)
    RETURNING {_COLUMNS}
    """
)

_IN_STATES = text(f"SELECT {_COLUMNS} FROM sync_runs WHERE state = ANY(:states) ORDER BY created_at")

_REOPEN_DISPATCH = text(
    """
    UPDATE sync_runs SET state = 'DISPATCHING', leased_until = NULL
    WHERE run_id = :run_id AND state = 'ENQUEUED'
        AND EXISTS (SELECT FROM sync_batches b WHERE b.run_id = :run_id AND b.enqueued_at IS NULL)
    """
)

_FINISH = text(
    """
    UPDATE sync_runs r SET state = 'FINISHED', finished_at = :now,
        completed = c.completed, failed = c.failed, skipped = c.skipped
    FROM (SELECT count(*) FILTER (WHERE status = 'COMPLETED') AS completed,
                 count(*) FILTER (WHERE status = 'FAILED') AS failed,
                 count(*) FILTER (WHERE status = 'SKIPPED') AS skipped
          FROM sync_jobs WHERE run_id = :run_id) c
    WHERE r.run_id = :run_id AND r.state = 'ENQUEUED'
        AND NOT EXISTS (SELECT FROM sync_jobs j
                        WHERE j.run_id = :run_id AND j.status IN ('PENDING', 'RUNNING'))
    """
)

_HAS_OPEN_JOBS = text(
    "SELECT EXISTS (SELECT FROM sync_jobs WHERE run_id = :run_id AND status IN ('PENDING', 'RUNNING'))"
)

_ENQUEUED_BEFORE = text(
    f"SELECT {_COLUMNS} FROM sync_runs WHERE state = 'ENQUEUED' AND enqueued_at <= :cutoff"
)

# The time that was seen is named, so that of several only one comes through.
_RESTART_GRACE = text(
    """
    UPDATE sync_runs SET enqueued_at = :now
    WHERE run_id = :run_id AND state = 'ENQUEUED' AND enqueued_at = :seen
    """
)

# Another time than the one that was there, even where the clocks of two say the same.
_POSTPONE_GRACE = text(
    """
    UPDATE sync_runs SET enqueued_at = greatest(enqueued_at + interval '1 microsecond', :now)
    WHERE run_id = :run_id AND state = 'ENQUEUED'
    """
)

_MISSED = text(
    """
    INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, requested_by, slot, state, created_at)
    VALUES (:run_id, :partition_key, 'daily', :triggered_by, :requested_by, :slot, 'MISSED', :now)
    ON CONFLICT (partition_key) DO NOTHING
    """
)

_DAILY_SLOTS = text(
    "SELECT partition_key, slot FROM sync_runs"
    " WHERE kind = 'daily' AND partition_key = ANY(:partition_keys)"
)


def open_run(connection: Connection, new: NewRun, now: datetime, leased_until: datetime) -> Run | None:
    """Makes the partition's run, or opens it again; None where the key belongs to another run, or the
    run's jobs have been pruned.
    """
    row = connection.execute(
        _OPEN,
        {
            **vars(new),
            "kind": new.kind.value,
            "selected_user_ids": None
            if new.selected_user_ids is None
            else [str(user_id) for user_id in new.selected_user_ids],
            "now": now,
            "leased_until": leased_until,
        },
    ).one_or_none()
    return None if row is None else _run(row)


def get(connection: Connection, partition_key: str) -> Run | None:
    """The run of a partition; None where there is none."""
    row = connection.execute(_GET, {"partition_key": partition_key}).one_or_none()
    return None if row is None else _run(row)


def latest(connection: Connection, limit: int) -> list[Run]:
    """The newest runs first."""
    return [_run(row) for row in connection.execute(_LATEST, {"limit": limit})]


def mark_enqueued(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """DISPATCHING → ENQUEUED, once no batch is left to send; says whether it moved."""
    return connection.execute(_ENQUEUED, {"run_id": run_id, "now": now}).rowcount == 1


def is_being_planned(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Whether batches of the run may still come: it is in PLANNING, by somebody who lives."""
    return bool(connection.execute(_BEING_PLANNED, {"run_id": run_id, "now": now}).scalar_one())


def renew(connection: Connection, run_id: UUID, leased_until: datetime) -> bool:
    """Extends the lease of a run that is being planned or dispatched; False where it is over."""
    parameters = {"run_id": run_id, "leased_until": leased_until}
    return connection.execute(_RENEW, parameters).rowcount == 1


def release(connection: Connection, run_id: UUID) -> None:
    """Says that nobody works on the run any more, so that reconcile need not wait for its lease."""
    connection.execute(_RELEASE, {"run_id": run_id})


def take_over(connection: Connection, now: datetime, leased_until: datetime) -> Run | None:
    """A run that is half planned or half dispatched and nobody's, now ours; None where there is none."""
    row = connection.execute(_TAKE_OVER, {"now": now, "leased_until": leased_until}).one_or_none()
    return None if row is None else _run(row)


def in_states(connection: Connection, *states: RunState) -> list[Run]:
    """The runs in one of these states, oldest first."""
    rows = connection.execute(_IN_STATES, {"states": [state.value for state in states]})
    return [_run(row) for row in rows]


def enqueued_before(connection: Connection, cutoff: datetime) -> list[Run]:
    """ENQUEUED runs whose last batch went out at `cutoff` or earlier."""
    return [_run(row) for row in connection.execute(_ENQUEUED_BEFORE, {"cutoff": cutoff})]


def restart_grace(connection: Connection, run: Run, now: datetime) -> bool:
    """ENQUEUED as seen → ENQUEUED now; False where it was opened, or enqueued anew, meanwhile."""
    parameters = {"run_id": run.run_id, "seen": run.enqueued_at, "now": now}
    return connection.execute(_RESTART_GRACE, parameters).rowcount == 1


def postpone_grace(connection: Connection, run_id: UUID, now: datetime) -> None:
    """ENQUEUED → ENQUEUED now, or a moment later than before; whoever saw it before has seen too little."""
    connection.execute(_POSTPONE_GRACE, {"run_id": run_id, "now": now})


def reopen_dispatch(connection: Connection, run_id: UUID) -> bool:
    """ENQUEUED → DISPATCHING, where a batch has been put back; nobody's until it is taken over."""
    return connection.execute(_REOPEN_DISPATCH, {"run_id": run_id}).rowcount == 1


def finish(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """ENQUEUED → FINISHED with its counts, where no job is left that is not final."""
    # Asked first: counting a million jobs only to find one open would be done every minute.
    if connection.execute(_HAS_OPEN_JOBS, {"run_id": run_id}).scalar_one():
        return False
    return connection.execute(_FINISH, {"run_id": run_id, "now": now}).rowcount == 1


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
    """Notes a day that gets no run; False where it has one by now."""
    parameters = {
        "run_id": run_id,
        "partition_key": partition_key,
        "triggered_by": triggered_by,
        "requested_by": requested_by,
        "slot": slot,
        "now": now,
    }
    return connection.execute(_MISSED, parameters).rowcount == 1


def daily_slots(connection: Connection, partition_keys: list[str]) -> dict[str, datetime | None]:
    """Those of the partitions that have a daily run, with the latest slot that it was for."""
    rows = connection.execute(_DAILY_SLOTS, {"partition_keys": partition_keys})
    return {row.partition_key: row.slot for row in rows}


def _run(row: object) -> Run:
    values = dict(row._mapping)  # type: ignore[attr-defined]
    values["kind"] = Kind(values["kind"])
    values["state"] = RunState(values["state"])
    return Run(**values)
