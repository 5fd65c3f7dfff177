"""Cancel: no further job of a run starts, its waiting jobs end SKIPPED, and the run ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.clock import Clock
from worker_scheduler.control.change import Change, Effect
from worker_scheduler.control.request import Request
from worker_scheduler.errors import Refused
from worker_scheduler.ledger import cancelled_jobs, control, run_ends
from worker_scheduler.ledger.control import ControlledRun
from worker_scheduler.ledger.database import Database

_JOBS_PER_STEP = 1000


def cancel(request: Request, on_progress: Callable[[int], None] = lambda _: None) -> Change:
    """Cancels a run, and sweeps its waiting jobs. Jobs that run finish.

    The flag takes effect within 5 s, also if the process ends while it sweeps: reconcile does the rest. To
    cancel what is cancelled changes nothing. on_progress: gets how many jobs have been swept.

    Raises BadInput for an unknown key, Refused for a run that has ended, and as Database does.
    """

    def change(connection: Connection, run: ControlledRun, now: datetime) -> str:
        if run.cancel is not None:
            return Effect.ALREADY_CANCELLED.value
        asked = request.asked
        if not control.cancel(connection, run.run_id, by=asked.actor, reason=asked.reason, now=now):
            raise Refused(f"{run.partition_key} is {run.state}, so there is nothing to cancel")
        return Effect.CANCELLED.value

    with request.refusals_recorded():
        run, outcome = request.change_run(change)
    swept = sweep(request.database, request.clock, run.run_id, on_progress)
    said = "cancelled" if outcome == Effect.CANCELLED else "was cancelled before"
    return Change(
        request.asked.verb,
        request.key,
        Effect(outcome),
        f"{said}: {swept} waiting jobs are SKIPPED now, jobs that run finish",
        jobs=swept,
    )


def sweep(
    database: Database, clock: Clock, run_id: UUID, on_progress: Callable[[int], None] = lambda _: None
) -> int:
    """Makes the waiting jobs of a cancelled run SKIPPED, in steps, and ends the run if none is left and
    none runs; returns how many jobs it moved.
    """
    total, moved = 0, _JOBS_PER_STEP
    while moved == _JOBS_PER_STEP:
        with database.transaction() as connection:
            moved = cancelled_jobs.skip(connection, run_id, now=clock(), limit=_JOBS_PER_STEP)
        total += moved
        on_progress(total)
    with database.transaction() as connection:
        now = clock()
        if run_ends.finish_cancelled(connection, run_id, now):
            cancelled_jobs.close_batches(connection, run_id, now)
    return total
