"""Assist: dispatches batches of a run that somebody else plans; a task of its own, on any machine.

It plans nothing and takes no lock: who dispatches a batch is settled by the lease of the batch.
"""

from __future__ import annotations

from worker_scheduler.context import TickContext
from worker_scheduler.dispatcher import Dispatcher
from worker_scheduler.errors import SchedulerError
from worker_scheduler.fan_out import dispatcher_of
from worker_scheduler.ledger import runs, schema
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.report import Report

_LOOK_SECONDS = 0.1
"""Between two looks for the next batches of a run that is still being planned."""


def dispatch(context: TickContext, partition_key: str) -> Report:
    """Sends batches until none is left and none will come. A failure is in the report."""
    with context.database.autocommit() as connection:
        schema.require_current(connection)
        run = runs.get(connection, partition_key)
    report = Report(mode=Kind.DAILY if run is None else run.kind, partition_key=partition_key)
    if run is None:
        report.outcome = "nothing_to_do"
        return report
    report.run_id, report.triggered_by = run.run_id, run.triggered_by
    started = context.clock()
    try:
        settings = context.settings
        dispatcher = dispatcher_of(context, settings.enqueue_batch_size, settings.enqueue_sleep_seconds)
        _until_none_is_left(context, dispatcher, run, report)
        report.outcome = "enqueued" if report.jobs_enqueued else "nothing_to_do"
    except SchedulerError as error:
        report.end(error)
    report.duration_seconds = (context.clock() - started).total_seconds()
    return report


def _until_none_is_left(context: TickContext, dispatcher: Dispatcher, run: Run, report: Report) -> None:
    planned = False
    while not planned:
        # Asked before the look for batches: those of a last chunk may come in between.
        with context.database.autocommit() as connection:
            planned = not runs.is_being_planned(connection, run.run_id, context.clock())
        for jobs in dispatcher.dispatch(run):
            report.jobs_enqueued += jobs
            report.batches += 1
            context.on_progress(report)
        if not planned:
            context.pause(_LOOK_SECONDS)
    dispatcher.close(run)
