"""The rule about single messages that were lost: neither in their queue nor with a worker.

Where workers answer probes, `probing.py` finds such a message, also in a queue that is never empty. Where
they do not (none runs, all are full of long jobs, or only ones of an earlier version), it is found when the
queue is empty. The messages of jobs that run do not count: a job holds its message until it ends.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import runs, waiting_jobs
from worker_scheduler.ledger.runs import Run
from worker_scheduler.ledger.tables import Kind, RunState
from worker_scheduler.maintenance.failures import Failures, stores_answer
from worker_scheduler.maintenance.rules import probing
from worker_scheduler.maintenance.rules.steps import pages_of_waiting

_UNFINISHED = (RunState.PLANNING, RunState.DISPATCHING, RunState.ENQUEUED)
_SECOND_LOOK_SECONDS = 1.0
"""The time between two looks at an empty queue. After a worker has popped a message and before it has noted
it in `unacked`, no look can see the message; that mostly lasts far less long than this.
"""


def lost_messages(context: TickContext) -> int:
    """Makes PENDING jobs due again whose message is lost.

    Each job has a grace time of its own, which begins when its message was last published. A queue that
    fails does not stop the other. Raises the first failure.
    """
    with context.database.autocommit() as connection:
        unfinished = runs.in_states(connection, *_UNFINISHED)
        wanted = runs.wanted(connection, *_UNFINISHED)
    failures = Failures(stores_answer(context))
    total = 0
    for kind in Kind:
        with failures.of(f"queue {kind.queue}"):
            total += _find(context, kind.queue, _ids(wanted, kind), _ids(unfinished, kind))
    failures.raise_first()
    return total


def _ids(found: list[Run], kind: Kind) -> list[UUID]:
    return [run.run_id for run in found if run.kind is kind]


def _find(context: TickContext, queue: str, run_ids: list[UUID], unfinished: list[UUID]) -> int:
    """unfinished: these runs, and those that are stopped, whose RUNNING jobs hold messages, too."""
    signs = probing.read_signs(context, queue)
    found = 0 if signs.answered else _find_in_empty_queue(context, queue, run_ids, unfinished)
    if context.broker.shows_messages:
        found += probing.search(context, signs, run_ids)
    return found


def _find_in_empty_queue(
    context: TickContext, queue: str, run_ids: list[UUID], unfinished: list[UUID]
) -> int:
    # Before the look: what another pass sends after it is younger than the grace time.
    cutoff = context.clock() - timedelta(seconds=context.settings.message_grace_seconds)
    with context.database.transaction() as connection:
        suspected = [
            run_id
            for run_id in run_ids
            if waiting_jobs.page(connection, run_id, cutoff=cutoff, after=None, limit=1)
        ]
    if not suspected or not _is_empty(context, queue, unfinished):
        return 0
    total = 0
    for run_id in suspected:
        for page in pages_of_waiting(context, run_id, cutoff):
            if _depth(context, queue, unfinished) != 0:
                return total  # a message has appeared in the meantime: the next pass looks again
            with context.database.transaction() as connection:
                total += waiting_jobs.make_due(
                    connection, run_id, page, [cutoff] * len(page), context.clock()
                )
    return total


def _is_empty(context: TickContext, queue: str, run_ids: list[UUID]) -> bool:
    """Looks twice, since a message on its way to a worker cannot be seen for a moment."""
    if _depth(context, queue, run_ids) != 0:
        return False
    context.pause(_SECOND_LOOK_SECONDS)
    return _depth(context, queue, run_ids) == 0


def _depth(context: TickContext, queue: str, run_ids: list[UUID]) -> int | None:
    """The messages of the queue without those of RUNNING jobs of these runs; None if it shows none."""
    if not context.broker.shows_messages:
        return context.broker.depth(queue)
    # Before the depth, and the rows after it: what is acknowledged in between is of a job that has ended.
    taken = [job_id for job_ids in context.broker.taken() for job_id in job_ids]
    depth = context.broker.depth(queue)
    if not depth or not taken:
        return depth
    with context.database.autocommit() as connection:
        return depth - waiting_jobs.number_running(connection, run_ids, taken)
