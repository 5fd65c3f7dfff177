"""The rule that notes samples of open runs and of queues, from which rates and forecasts are made."""

from __future__ import annotations

from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import samples
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.maintenance.rules.steps import repeat_in_steps

_QUEUES = ("scheduler", *(kind.queue for kind in Kind))


def take_samples(context: TickContext) -> int:
    """Notes the counts of each open run and the depth of each queue, once per minute of the clock.

    Old samples go. Returns 0, since that puts nothing right. Raises StoreUnavailable, if only the broker is
    away after the counts of runs are stored.
    """
    now = context.clock()
    with context.database.autocommit() as connection:
        if not samples.begin(connection, now):
            return 0
    with context.database.transaction() as connection:
        samples.note_runs(connection, now)
    for step in (samples.delete_old_runs, samples.delete_old_queues):
        repeat_in_steps(context, step)
    depths = {queue: context.broker.depth(queue) for queue in _QUEUES}
    with context.database.transaction() as connection:
        known = {queue: depth for queue, depth in depths.items() if depth is not None}
        samples.note_queues(connection, known, now)
    return 0
