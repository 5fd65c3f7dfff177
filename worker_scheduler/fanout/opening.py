"""Opening: stores what a tick is asked for, and decides in the same transaction which tick does it.

So a request is never lost between the two: either this tick has the lock, or the tick that has it looks at
the run again before it lets go, or the request is refused and nothing is stored. If the process that should
do it dies, the run is PLANNING with a lease that runs out, and reconcile does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from worker_scheduler import logs
from worker_scheduler.errors import Refused
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.tick_lock import TickLock
from worker_scheduler.ledger import control, months, requests, runs
from worker_scheduler.ledger.control import Cancel, Pause
from worker_scheduler.ledger.locks import Holder
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.ledger.runs import NewRun, Run, RunIdTaken
from worker_scheduler.ledger.tables import Kind

log = logs.get_logger(__name__)

_TRIES_AT_A_MONTH = 5
_BETWEEN_TRIES_SECONDS = 1.0
"""Time for the claims that have queued up behind a try."""


@dataclass(frozen=True)
class Opened:
    """The run that was opened. joined: the tick that plans and dispatches it; None if this one does."""

    run: Run
    joined: Holder | None


def refuse_another_runs_key(
    context: TickContext, partition_key: str, kind: Kind, backfill_days: int | None
) -> None:
    """Raises Refused if the partition belongs to another kind of run, or if its run has been pruned, is
    paused or cancelled.
    """
    with context.database.autocommit() as connection:
        run = runs.get(connection, partition_key)
        stopped = None if run is None else control.stop_of(connection, run.run_id, context.clock())
    if stopped is not None:
        raise Refused(_way_on(partition_key, stopped))
    if run is not None and (run.kind, run.backfill_days) != (kind, backfill_days):
        days = "" if run.backfill_days is None else f" with backfill_days {run.backfill_days}"
        raise Refused(
            f"partition {partition_key} belongs to a {run.kind} run{days}:"
            " choose another --partition-key or --campaign"
        )
    if run is not None and run.pruned_at is not None:
        raise Refused(
            f"partition {partition_key} was pruned on {run.pruned_at:%Y-%m-%d}, so it is no longer"
            " known which users have had a job: use a backfill"
        )


def _way_on(partition_key: str, stopped: Pause | Cancel) -> str:
    since = f"since {stopped.since:%Y-%m-%d %H:%M:%S} UTC by {stopped.by}"
    if isinstance(stopped, Cancel):
        return (
            f"partition {partition_key} is cancelled, {since}:"
            f" `scheduler retry {partition_key} --only cancelled` is the way back"
        )
    return f"partition {partition_key} is paused, {since}: `scheduler resume {partition_key}` first"


def open_run(context: TickContext, new: NewRun, lock: TickLock | None, asked: Asked) -> Opened:
    """Opens the run of a partition and takes the lock, or joins the tick of the partition that has it. What
    asked for that is recorded with it.

    lock: None if locks are switched off. The id of `new` counts if the partition has no run yet. Raises
    Refused if another partition's tick has the lock, or if the partition belongs to another run.
    """
    if lock is not None:
        lock.refuse_another()  # before the work that would be rolled back
    _make_month(context, new.run_id)
    while True:
        # The id is needed early only for chosen users: their rows are stored before the run, under its id.
        known = None if new.selected_user_ids is None else _run_id_of(context, new.partition_key)
        try:
            return _open(context, new if known is None else replace(new, run_id=known), lock, asked)
        except RunIdTaken:
            continue  # another process has made the run since the look


def _open(context: TickContext, new: NewRun, lock: TickLock | None, asked: Asked) -> Opened:
    with context.database.transaction() as connection:  # a refusal rolls it back
        now = context.clock()
        run = runs.open_run(connection, new, now=now, leased_until=context.settings.lease.until(now))
        if run is None:  # another process has made or pruned it since the check
            refuse_another_runs_key(context, new.partition_key, new.kind, new.backfill_days)
            raise Refused(f"partition {new.partition_key} belongs to another run")
        if new.selected_user_ids:  # which may have taken seconds to store
            runs.renew(connection, run.run_id, context.settings.lease.until(context.clock()))
        # The lock comes last, since its holder's heartbeat waits for this transaction.
        joined = None if lock is None else lock.acquire(connection)
        outcome = "opened" if joined is None else "joined"
        requests.record(connection, asked, outcome, now=now, run_id=run.run_id)
        return Opened(run, joined)


def _run_id_of(context: TickContext, partition_key: str) -> UUID | None:
    with context.database.autocommit() as connection:
        run = runs.get(connection, partition_key)
    return None if run is None else run.run_id


def _make_month(context: TickContext, run_id: UUID) -> None:
    """Makes the partition of the run's month, unless reconcile has made it ahead, as it usually has.

    If it cannot be made, the default partition takes the jobs: a day must not fail because a backup runs.
    """
    for attempt in range(_TRIES_AT_A_MONTH):
        if attempt:
            context.pause(_BETWEEN_TRIES_SECONDS)
        with context.database.autocommit() as connection:
            if months.ensure(connection, run_id) is not None:
                return
    log.warning(
        "could not make the month's partition, its jobs go into sync_jobs_monthless", run_id=str(run_id)
    )
