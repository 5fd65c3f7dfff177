"""The extra dispatcher: a task that dispatches batches of a run, while another process may plan it.

It plans nothing and takes no lock: the lease of a batch decides who dispatches the batch. Its message may
be the run's handover (handover.py); if the queue fills up again, the run is handed over again, until no
batch is left.
"""

from __future__ import annotations

from worker_scheduler.errors import SchedulerError
from worker_scheduler.fanout import handover
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.dispatcher import Dispatcher, DispatchResult
from worker_scheduler.fanout.pipeline import dispatcher_of
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger import held_runs, runs, schema
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.outcome import Outcome

_PLAN_POLL_SECONDS = 0.1
"""Between two looks for the next batches of a run that is still being planned."""


def dispatch(context: TickContext, partition_key: str, message_id: str) -> Report:
    """Sends batches until none is left and none will come, or until the queue is full.

    message_id: of the message that asked for it. A failure is in the report. Raises ConfigurationError if
    the tables are not of this version, StoreUnavailable if Postgres cannot be asked for the run.
    """
    with context.database.autocommit() as connection:
        schema.require_current(connection)
        run = runs.get(connection, partition_key)
    report = Report(mode=Kind.DAILY if run is None else run.kind, partition_key=partition_key)
    if run is None:
        report.outcome = Outcome.NOTHING_TO_DO
        return report
    report.run_id, report.triggered_by = run.run_id, run.triggered_by
    started = context.clock()
    try:
        settings = context.settings
        dispatcher = dispatcher_of(
            context, report, settings.enqueue_batch_size, settings.enqueue_sleep_seconds
        )
        if handover.arrived(partition_key, message_id, context.broker):
            # Sent without a look at the queue: the workers have drained it up to this message. If only
            # handovers and unacknowledged jobs filled it, every dispatcher would find it full, and none
            # would send.
            dispatcher.send_next(run)
        _dispatch_to_the_end(context, dispatcher, run)
        report.outcome = Outcome.ENQUEUED if report.jobs_enqueued else Outcome.NOTHING_TO_DO
    except SchedulerError as error:
        report.end(error)
    report.duration_seconds = (context.clock() - started).total_seconds()
    return report


def _dispatch_to_the_end(context: TickContext, dispatcher: Dispatcher, run: Run) -> None:
    while True:
        # Asked before the look for batches: those of the last chunk may come in between.
        with context.database.autocommit() as connection:
            planned = not held_runs.is_being_planned(connection, run.run_id, context.clock())
        result = dispatcher.dispatch(run)
        if result is DispatchResult.QUEUE_FULL:
            context.dispatcher_requests.continue_later(run)
            break
        if planned:
            break
        context.pause(_PLAN_POLL_SECONDS)
    dispatcher.close(run)
