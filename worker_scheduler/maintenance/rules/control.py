"""Rules about what operators want: pauses that are over, parked jobs, cancelled runs, retries."""

from __future__ import annotations

from datetime import timedelta

from worker_scheduler import logs
from worker_scheduler.control import cancel, pause, retry
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import control, parked, retries
from worker_scheduler.maintenance.failures import Failures, postgres_answers
from worker_scheduler.maintenance.rules.steps import repeat_in_steps

log = logs.get_logger(__name__)

_STRAGGLERS = timedelta(minutes=1)
"""For so long after a pause a worker that looked before its end may still park a job; in truth, 5 s."""


def cancelled_runs(context: TickContext) -> int:
    """Makes the waiting jobs of cancelled runs SKIPPED, and ends these runs. Raises the first failure."""
    with context.database.autocommit() as connection:
        cancelled = control.cancelled(connection)
    failures = Failures(postgres_answers(context))
    total = 0
    for run_id, partition_key in cancelled:
        with failures.of(partition_key):
            total += cancel.sweep(context.database, context.clock, run_id)
    failures.raise_first()
    return total


def open_retries(context: TickContext) -> int:
    """Goes on with retries that a command has left. Raises the first failure."""
    with context.database.autocommit() as connection:
        unfinished = retries.unfinished(connection)
    failures = Failures(postgres_answers(context))
    total = 0
    for request_id in unfinished:
        with failures.of(f"retry {request_id}"):
            total += retry.walk(
                context.database, context.clock, request_id, context.settings.sync_max_attempts
            )
    failures.raise_first()
    return total


def paused_runs(context: TickContext) -> int:
    """Ends pauses whose time is over, releases the parked jobs of runs that are paused no more, and parks
    jobs of paused runs that have become due. Raises the first failure.
    """
    with context.database.autocommit() as connection:
        over = control.resume_overdue(connection, context.clock())
        resumed = control.resumed(connection)
    for partition_key in over:
        log.info("pause is over", partition_key=partition_key)
    failures = Failures(postgres_answers(context))
    total = repeat_in_steps(context, parked.park_due)
    for run_id, partition_key in resumed:
        with failures.of(partition_key):
            before = context.clock() - _STRAGGLERS
            total += pause.release(context.database, context.clock, run_id)
            with context.database.autocommit() as connection:
                control.mark_released(connection, run_id, before)
    failures.raise_first()
    return total
