"""SQL of a claim: the job of a message begins, unless it is not waiting or its run is stopped.

One statement in one month partition, whatever becomes of the message: after a cancel, a hundred thousand
messages may come whose jobs may not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.any_job import AnyJob
from worker_scheduler.ledger.attempts import COLUMNS, AttemptStatement, ClaimedJob, claimed_job
from worker_scheduler.ledger.by_id import within_runs
from worker_scheduler.ledger.events import JobEvent, insert_from, of_moved
from worker_scheduler.ledger.formats import raw, text_of
from worker_scheduler.ledger.jobs import extend_leases, runs_of
from worker_scheduler.ledger.lease_sql import WAITED
from worker_scheduler.ledger.months import month_of
from worker_scheduler.ledger.names import is_divided
from worker_scheduler.ledger.parked import PARKED_SQL
from worker_scheduler.ledger.stopped_runs import KNOWN_FOR_SECONDS, StoppedRuns

_NAMES = (
    "job_id, run_id, user_id, github_login, partition_key, triggered_by, backfill_days, attempt,"
    " attempts_allowed, interruptions, status, waited"
)
_IS_FRESH = f"""
    (CAST(:as_of AS timestamptz) IS NULL
     OR clock_timestamp() < CAST(:as_of AS timestamptz) + interval '{KNOWN_FOR_SECONDS:g} seconds')
"""
# A PENDING job that has a lease: reconcile is publishing its message again, so the job is due, even if this
# worker's clock is behind. If the claim were refused, the message would be gone.
_MAY_START = f"""
    j.status || '' = 'PENDING'
    AND (j.not_before IS NULL OR j.not_before <= :now OR j.leased_until IS NOT NULL) AND {_IS_FRESH}
"""
# Hidden from the indexes over runs (see by_id.py).
_IN = "coalesce(j.run_id = ANY(CAST(:{runs} AS uuid[])), false)"

# A claim that took the row's lock first would take a tenth longer. So this one tells how long it has
# waited, and if that is long, its lease is renewed.
_CLAIM = f"""
    WITH claimed({_NAMES}) AS (
        UPDATE sync_jobs j SET status = 'RUNNING', attempt = attempt + 1, started_at = :now,
            leased_until = :leased_until + {WAITED}, not_before = NULL
        WHERE {{job}} AND {_MAY_START} {{unless_stopped}}
        RETURNING {COLUMNS}, {raw("status")}, CAST(extract(epoch FROM {WAITED}) AS float8)
    ) {{stopped}}
    SELECT {_NAMES}, true AS is_claimed, false AS is_stale FROM claimed
    UNION ALL
    SELECT {COLUMNS}, {raw("status")}, 0, false, NOT {_IS_FRESH} FROM sync_jobs j
    WHERE {{job}} AND NOT EXISTS (SELECT FROM claimed)
"""
_UNLESS_STOPPED = f"AND NOT {_IN.format(runs='paused')} AND NOT {_IN.format(runs='cancelled')}"
# Each of the three parts changes a row of other runs than the two others do.
_STOPPED = f"""
    , parked AS (
        UPDATE sync_jobs j SET not_before = {PARKED_SQL}, leased_until = NULL
        WHERE {{job}} AND {_MAY_START} AND {_IN.format(runs="paused")}
    ), cancelled AS (
        UPDATE sync_jobs j SET status = 'SKIPPED', cancelled_at = :now, completed_at = :now,
            error_message = 'cancelled', reason_class = 'cancelled', leased_until = NULL, not_before = NULL
        WHERE {{job}} AND {_MAY_START} AND {_IN.format(runs="cancelled")}
        RETURNING {of_moved()}
    ), noted AS (
        {insert_from("cancelled", JobEvent.CANCELLED)}
    )
"""


def _statement(unless_stopped: str, stopped: str) -> AttemptStatement:
    def by(job: str) -> str:
        others = stopped.format(job=job)
        return _CLAIM.format(job=job, unless_stopped=unless_stopped, stopped=others)

    by_id = "j.job_id = :job_id"
    return AttemptStatement(
        within_run=text(by(f"{by_id} AND {within_runs('j.run_id')}")), by_id_only=text(by(by_id))
    )


_PLAIN = _statement("", "")
_WITH_STOPPED = _statement(_UNLESS_STOPPED, _STOPPED)


@dataclass(frozen=True)
class Claim:
    """What a message led to: a claimed job, or a job that may not start now, as it was before the claim.

    Both None: there is no such job. is_stale: nothing was done, since the runs that are stopped were looked
    up too long ago.
    """

    job: ClaimedJob | None = None
    unclaimed: AnyJob | None = None
    is_stale: bool = False


def claim(
    connection: Connection,
    job_id: UUID,
    now: datetime,
    leased_until: datetime,
    stopped: StoppedRuns | None = None,
) -> Claim:
    """Moves a job PENDING → RUNNING if it is due. If its run is paused, parks it; if its run is cancelled,
    moves it PENDING → SKIPPED.

    stopped: the runs that may not start jobs; None: all may.
    """
    parameters: dict[str, object] = {
        "job_id": job_id,
        "now": now,
        "leased_until": leased_until,
        "as_of": None if stopped is None else stopped.as_of,
    }
    statement = _PLAIN
    if stopped is not None and (stopped.paused or stopped.cancelled):
        statement = _WITH_STOPPED
        parameters["paused"] = [str(run_id) for run_id in stopped.paused]
        parameters["cancelled"] = [str(run_id) for run_id in stopped.cancelled]
    month = month_of(job_id)
    row = None
    if month is not None and is_divided(connection):
        row = connection.execute(statement.within_run, {**parameters, **runs_of(month)}).one_or_none()
    if row is None:
        # The table is not divided, or the run's id is random or NULL, as those of an older scheduler are.
        row = connection.execute(statement.by_id_only, parameters).one_or_none()
    if row is None:
        return Claim()
    if not row.is_claimed:
        return Claim(
            unclaimed=AnyJob(
                job_id=row.job_id,
                user_id=row.user_id,
                github_login=text_of(connection, row.github_login),
                partition_key=text_of(connection, row.partition_key) or "",
                status=text_of(connection, row.status) or "",
            ),
            is_stale=row.is_stale,
        )
    job = claimed_job(connection, row)
    if row.waited:
        extend_leases(connection, [job], leased_until + timedelta(seconds=row.waited))
    return Claim(job)
