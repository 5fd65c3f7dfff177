"""Rules about runs: unfinished ones, those that were never started, and those that are done."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID

from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import due_days, pipeline, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher_requests import ReconcileRequests
from worker_scheduler.ledger import backoff, run_ends, runs
from worker_scheduler.ledger.requests import id_of_task
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import RunState
from worker_scheduler.maintenance.failures import Failures, postgres_answers, stores_answer

_CATCHING_UP = id_of_task("reconcile")


def abandoned_runs(context: TickContext) -> int:
    """Plans and dispatches the rest of runs that no process plans or dispatches any more.

    A run that fails is left alone for a while (ledger/backoff.py). Raises the first failure.
    """
    failures = Failures(stores_answer(context))
    context = replace(context, dispatcher_requests=ReconcileRequests(context.dispatcher_requests))
    resumed: set[UUID] = set()
    while (run := pipeline.take_over(context)) is not None:
        if run.run_id in resumed:
            # Another process holds a batch of it. The run stays leased, so that the next one in line is
            # taken over; the next pass looks at it again.
            continue
        resumed.add(run.run_id)
        with failures.of(run.partition_key, then=partial(_back_off, context, run)):
            tick.resume(context, run)
            with context.database.autocommit() as connection:
                backoff.succeeded(connection, run.run_id)
    failures.raise_first()
    return len(resumed)


def _back_off(context: TickContext, run: Run) -> None:
    interval = timedelta(seconds=context.settings.reconcile_interval_seconds)
    with context.database.autocommit() as connection:
        backoff.failed(connection, run.run_id, context.clock(), interval)


def missed_slots(context: TickContext) -> int:
    """Starts due slots that have no run, or notes them as MISSED. Raises the first failure."""
    # The same request in each pass, so that a day that is refused again and again has one row.
    asking = replace(context, actor="reconcile", request_id=_CATCHING_UP)
    reports = due_days.start_due(asking, DailyOptions())
    failures = Failures(stores_answer(context))
    for report in reports:
        if report.failure is not None:
            with failures.of(str(report.partition_key)):
                raise report.failure
    failures.raise_first()
    return len(reports)


def finished_runs(context: TickContext) -> int:
    """Finishes ENQUEUED runs whose jobs are all final, with their counts. Raises the first failure."""
    with context.database.autocommit() as connection:
        enqueued = runs.in_states(connection, RunState.ENQUEUED)
    failures = Failures(postgres_answers(context))
    total = 0
    for run in enqueued:
        with failures.of(run.partition_key), context.database.autocommit() as connection:
            total += run_ends.finish(connection, run.run_id, context.clock())
    failures.raise_first()
    return total
