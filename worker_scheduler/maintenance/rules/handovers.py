"""The rule handovers: the message that continues a run behind a full queue is lost."""

from __future__ import annotations

from worker_scheduler.fanout import handover
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import batches, broker_epochs, runs
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import RunState
from worker_scheduler.maintenance.failures import Failures, stores_answer
from worker_scheduler.publisher.queue_bound import QueueBound

_SECOND_LOOK_SECONDS = 1.0
"""The time between two looks for a message: on its way to a worker it is nowhere for a moment. If that
lasts longer, the run gets a second message, which is harmless: it is an extra dispatcher.
"""


def handovers(context: TickContext) -> int:
    """Replaces the handovers of runs with unsent batches whose message is neither in the queue nor with a
    worker. Without it such a run would go on only once per pass. Raises the first failure of a run.
    """
    if context.settings.max_queue_depth is None:
        return 0
    with context.database.autocommit() as connection:
        unfinished = [
            run
            for run in runs.in_states(connection, RunState.PLANNING, RunState.DISPATCHING)
            if batches.has_to_send(connection, run.run_id)
        ]
    failures = Failures(stores_answer(context))
    total = 0
    absent: list[tuple[Run, str]] = []
    for run in unfinished:
        with failures.of(run.partition_key):
            message_id = context.broker.handover(run.partition_key)
            if message_id is None:
                total += _hand_over_again(context, run)
            elif not context.broker.holds(run.queue, message_id):
                absent.append((run, message_id))
    if absent:
        context.pause(_SECOND_LOOK_SECONDS)
    for run, message_id in absent:
        with failures.of(run.partition_key):
            if not context.broker.holds(run.queue, message_id):
                total += handover.replace_lost(run, message_id, context.broker, context.dispatch_sender)
    failures.raise_first()
    return total


def _hand_over_again(context: TickContext, run: Run) -> bool:
    """Hands a run over that has no handover, if the broker has lost its data, and the queue is full again.

    Then the handover may be lost together with the note of it. Otherwise none is made: it may be a run of
    the command, which waits for space itself.
    """
    with context.database.autocommit() as connection:
        present = broker_epochs.present(connection)
        seen = broker_epochs.seen_since(connection, run.created_at)
    if present is None or all(one.epoch == present.epoch for one in seen):
        return False
    if QueueBound(context.broker, context.settings.max_queue_depth).has_space(run.queue):
        return False
    return handover.hand_over(run, context.broker, context.dispatch_sender)
