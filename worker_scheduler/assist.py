"""Assist: dispatches batches of a run that somebody else plans; a task of its own, on any machine.

It plans nothing and takes no lock: who dispatches a batch is settled by the lease of the batch. Its
message is a baton where the queue of jobs was full: it waits behind the jobs that fill the queue, so
no process has to wait for them, and is passed on until no batch is left. A run has one at most.
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


def dispatch(context: TickContext, partition_key: str, message_id: str) -> Report:
    """Sends batches until none is left and none will come, or the queue is full and the run passed on.

    message_id: of the message that asked for it. A failure is in the report.
    """
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
        if context.broker.take_baton(partition_key, message_id):
            # Of whatever room there is: workers have drained the queue as far as to this message. Where
            # batons and jobs in hand are all that fills the queue, nobody else would ever find room.
            for jobs in dispatcher.send_next(run) or ():
                _count(context, report, jobs)
        _until_none_is_left(context, dispatcher, run, report)
        report.outcome = "enqueued" if report.jobs_enqueued else "nothing_to_do"
    except SchedulerError as error:
        report.end(error)
    report.duration_seconds = (context.clock() - started).total_seconds()
    return report


def _until_none_is_left(context: TickContext, dispatcher: Dispatcher, run: Run, report: Report) -> None:
    planned = False
    while not planned and not dispatcher.out_of_room:
        # Asked before the look for batches: those of a last chunk may come in between.
        with context.database.autocommit() as connection:
            planned = not runs.is_being_planned(connection, run.run_id, context.clock())
        for jobs in dispatcher.dispatch(run):
            _count(context, report, jobs)
        if not planned and not dispatcher.out_of_room:
            context.pause(_LOOK_SECONDS)
    if dispatcher.out_of_room:
        context.pass_on(run.partition_key, run.kind.value)
    dispatcher.close(run)


def _count(context: TickContext, report: Report, jobs: int) -> None:
    report.jobs_enqueued += jobs
    report.batches += 1
    context.on_progress(report)
