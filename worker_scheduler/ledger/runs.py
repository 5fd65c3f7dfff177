"""SQL of sync_runs: opens, reads and moves runs. Each change of state names the state it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.lease_sql import WAITED, is_over, is_valid
from worker_scheduler.ledger.run_ends import KEPT
from worker_scheduler.ledger.stopped_runs import IS_STOPPED
from worker_scheduler.ledger.tables import Kind, RunState


@dataclass(frozen=True)
class Run:
    """A row of sync_runs, with the columns that the code needs."""

    run_id: UUID
    partition_key: str
    kind: Kind
    triggered_by: str
    backfill_days: int | None
    state: RunState
    job_count: int
    batch_count: int
    created_at: datetime
    enqueued_at: datetime | None
    finished_at: datetime | None
    completed: int | None
    failed: int | None
    skipped: int | None
    pruned_at: datetime | None

    @property
    def queue(self) -> str:
        """The queue that the run's jobs go to."""
        return self.kind.queue


@dataclass(frozen=True)
class NewRun:
    """The run that a tick asks for.

    run_id: that of the partition's run if there is one, otherwise a new one. selected_user_ids: None means
    every user.
    """

    run_id: UUID
    partition_key: str
    kind: Kind
    triggered_by: str
    backfill_days: int | None
    selected_user_ids: Sequence[UUID] | None
    requested_by: str | None
    slot: datetime | None


class RunIdTaken(Exception):
    """The partition has a run with another id, which the chosen users must be stored under."""


_COLUMNS = (
    "run_id, partition_key, kind, triggered_by, backfill_days, state, jobs AS job_count,"
    " batches AS batch_count,"
    " created_at, enqueued_at, finished_at, completed, failed, skipped, pruned_at"
)

# A partition that has a run is planned again from the start, so that new users get their job. If an earlier
# selection is still being planned, the two selections are united, so that no user is lost. No row is
# returned for another kind, other backfill_days, or a run whose jobs were pruned.
_OPEN = text(
    f"""
    INSERT INTO sync_runs AS r (run_id, partition_key, kind, triggered_by, backfill_days,
        chosen_users, requested_by, slot, state, leased_until, created_at)
    VALUES (:run_id, :partition_key, :kind, :triggered_by, :backfill_days,
        :chosen_users, :requested_by, :slot, 'PLANNING', :leased_until + {WAITED}, :now)
    ON CONFLICT (partition_key) DO UPDATE SET
        state = 'PLANNING',
        planned_through = NULL,
        jobs_before = r.jobs,
        leased_until = :leased_until + {WAITED},
        finished_at = NULL, completed = NULL, failed = NULL, skipped = NULL, cancelled = NULL,
        {KEPT},
        slot = greatest(r.slot, excluded.slot),
        requested_by = excluded.requested_by,
        failures = 0, retry_after = NULL, missed_because = NULL,
        chosen_users = excluded.chosen_users AND (r.chosen_users OR r.state <> 'PLANNING')
    WHERE r.state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED', 'FINISHED', 'MISSED')
        AND r.pruned_at IS NULL
        AND r.cancelled_at IS NULL
        AND (r.paused_at IS NULL OR r.paused_until <= :now)
        AND r.kind = excluded.kind
        AND r.backfill_days IS NOT DISTINCT FROM excluded.backfill_days
    RETURNING {_COLUMNS}
    """
)

# Users of earlier selections stay: they have their jobs, or are still to be planned. In the order of the
# ids: two transactions that name the same users in different orders would wait for each other.
_SELECT_USERS = text(
    """
    INSERT INTO sync_selected_users (run_id, user_id)
    SELECT :run_id, user_id FROM unnest(CAST(:user_ids AS uuid[])) AS chosen(user_id) ORDER BY user_id
    ON CONFLICT DO NOTHING
    """
)
_USERS_PER_STATEMENT = 10_000

_GET = text(f"SELECT {_COLUMNS} FROM sync_runs WHERE partition_key = :partition_key")

_LATEST = text(f"SELECT {_COLUMNS} FROM sync_runs ORDER BY created_at DESC LIMIT :limit")

# enqueued_at is that of the last batch, so that a run without new batches does not look young.
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
    f"""
    SELECT EXISTS (SELECT FROM sync_runs
                   WHERE run_id = :run_id AND state = 'PLANNING' AND {is_valid("leased_until")})
    """
)

_TO_BE_PLANNED = text(
    """
    SELECT EXISTS (SELECT FROM sync_runs
                   WHERE run_id = :run_id AND state = 'PLANNING' AND cancelled_at IS NULL)
    """
)

_AT_WORK = "state IN ('PLANNING', 'DISPATCHING')"

# The planner locks the row while it writes a chunk, so the lease is computed after the wait for that lock.
_RENEW = text(
    f"""
    WITH held AS MATERIALIZED (
        SELECT run_id FROM sync_runs WHERE run_id = :run_id AND {_AT_WORK} FOR UPDATE
    )
    UPDATE sync_runs r SET leased_until = :leased_until + {WAITED}
    FROM held WHERE r.run_id = held.run_id AND r.{_AT_WORK}
    """
)

_RELEASE = text(f"UPDATE sync_runs SET leased_until = NULL WHERE run_id = :run_id AND {_AT_WORK}")

# Reconcile could not plan or dispatch such a run, and leaves it alone for a while.
_BACKED_OFF = "coalesce(retry_after > :now, false)"

# A pause stops dispatch, not planning.
_IS_WANTED = """
    cancelled_at IS NULL AND (state = 'PLANNING' OR paused_at IS NULL OR paused_until <= :now)
"""

_FREE = f"""
    {_AT_WORK} AND (leased_until IS NULL OR {is_over("leased_until")}) AND NOT {_BACKED_OFF}
    AND {_IS_WANTED}
"""

# SKIP LOCKED: two reconcile passes take different runs.
_TAKE_OVER = text(
    f"""
    UPDATE sync_runs SET leased_until = :leased_until + {WAITED}
    WHERE run_id = (SELECT run_id FROM sync_runs
                    WHERE {_FREE}
                    ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
        AND {_FREE}
    RETURNING {_COLUMNS}
    """
)

_IN_STATES = text(f"SELECT {_COLUMNS} FROM sync_runs WHERE state = ANY(:states) ORDER BY created_at")
_WANTED = text(
    f"""
    SELECT {_COLUMNS} FROM sync_runs r
    WHERE state = ANY(:states) AND NOT {IS_STOPPED.format(run_id="r.run_id")} ORDER BY created_at
    """
)

_REOPEN_DISPATCH = text(
    """
    UPDATE sync_runs SET state = 'DISPATCHING', leased_until = NULL
    WHERE run_id = :run_id AND state = 'ENQUEUED'
        AND EXISTS (SELECT FROM sync_batches b WHERE b.run_id = :run_id AND b.enqueued_at IS NULL)
    """
)


def open_run(connection: Connection, new: NewRun, now: datetime, leased_until: datetime) -> Run | None:
    """Creates the run of a partition, or opens it again, within a transaction; None if the key belongs to
    a run of another kind or with other backfill_days, or if the run's jobs have been pruned.

    Raises RunIdTaken if users are chosen and the partition's run has another id than `new`; after that the
    transaction can only be rolled back.
    """
    # First: a million ids take seconds, and the planner and its heartbeat need the run's row.
    _select_users(connection, new.run_id, new.selected_user_ids or ())
    row = connection.execute(
        _OPEN,
        {
            **vars(new),
            "kind": new.kind.value,
            "chosen_users": new.selected_user_ids is not None,
            "now": now,
            "leased_until": leased_until,
        },
    ).one_or_none()
    if row is None:
        return None
    if new.selected_user_ids is not None and row.run_id != new.run_id:
        raise RunIdTaken
    return _run_from_row(row)


def _select_users(connection: Connection, run_id: UUID, user_ids: Sequence[UUID]) -> None:
    ordered = sorted(user_ids)
    for first in range(0, len(ordered), _USERS_PER_STATEMENT):
        some = [str(user_id) for user_id in ordered[first : first + _USERS_PER_STATEMENT]]
        connection.execute(_SELECT_USERS, {"run_id": run_id, "user_ids": some})


def get(connection: Connection, partition_key: str) -> Run | None:
    """The run of a partition, or None."""
    row = connection.execute(_GET, {"partition_key": partition_key}).one_or_none()
    return None if row is None else _run_from_row(row)


def latest(connection: Connection, limit: int) -> list[Run]:
    """The newest runs, newest first."""
    return [_run_from_row(row) for row in connection.execute(_LATEST, {"limit": limit})]


def mark_enqueued(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Moves a run DISPATCHING → ENQUEUED if no batch is left to send; says whether it moved."""
    return connection.execute(_ENQUEUED, {"run_id": run_id, "now": now}).rowcount == 1


def is_being_planned(connection: Connection, run_id: UUID, now: datetime) -> bool:
    """Whether a living process is planning the run, so that more batches may come."""
    return bool(connection.execute(_BEING_PLANNED, {"run_id": run_id, "now": now}).scalar_one())


def is_to_be_planned(connection: Connection, run_id: UUID) -> bool:
    """Whether users of the run may still be without a job: it is PLANNING, with or without a process."""
    return bool(connection.execute(_TO_BE_PLANNED, {"run_id": run_id}).scalar_one())


def renew(connection: Connection, run_id: UUID, leased_until: datetime) -> bool:
    """Extends the lease of a run that is being planned or dispatched; False if it no longer is."""
    parameters = {"run_id": run_id, "leased_until": leased_until}
    return connection.execute(_RENEW, parameters).rowcount == 1


def release(connection: Connection, run_id: UUID) -> None:
    """Ends the lease of a run, so that reconcile need not wait until it runs out."""
    connection.execute(_RELEASE, {"run_id": run_id})


def take_over(connection: Connection, now: datetime, leased_until: datetime) -> Run | None:
    """Takes the lease of the oldest run that is only partly planned or dispatched, has no lease and is not
    left alone after a failure (backoff.py); returns None if there is none.
    """
    row = connection.execute(_TAKE_OVER, {"now": now, "leased_until": leased_until}).one_or_none()
    return None if row is None else _run_from_row(row)


def in_states(connection: Connection, *states: RunState) -> list[Run]:
    """The runs in one of these states, oldest first."""
    rows = connection.execute(_IN_STATES, {"states": [state.value for state in states]})
    return [_run_from_row(row) for row in rows]


def wanted(connection: Connection, *states: RunState) -> list[Run]:
    """The runs in one of these states that are neither paused nor cancelled, oldest first."""
    rows = connection.execute(_WANTED, {"states": [state.value for state in states]})
    return [_run_from_row(row) for row in rows]


def reopen_dispatch(connection: Connection, run_id: UUID) -> bool:
    """Moves a run ENQUEUED → DISPATCHING, without a lease, if a batch is unsent; says whether it moved."""
    return connection.execute(_REOPEN_DISPATCH, {"run_id": run_id}).rowcount == 1


def _run_from_row(row: object) -> Run:
    values = dict(row._mapping)  # type: ignore[attr-defined]
    values["kind"] = Kind(values["kind"])
    values["state"] = RunState(values["state"])
    return Run(**values)
