"""Handover: continues the dispatch of a run whose queue is full, without a process that waits for it.

The handover is a message of `scheduler.dispatch` that waits in the queue of the jobs, behind the jobs that
fill it. When a worker takes it, the workers have drained the queue that far. A run has at most one handover
at a time, and its message's id stands in Redis; so a run that is triggered ten times does not fill the
queue with handovers.
"""

from __future__ import annotations

from uuid import uuid4

from worker_scheduler import logs
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger.runs import Run
from worker_scheduler.publisher.broker import BrokerState
from worker_scheduler.publisher.dispatch_message import DispatchSender

log = logs.get_logger(__name__)


def hand_over(run: Run, broker: BrokerState, sender: DispatchSender) -> bool:
    """Puts the run's handover behind the jobs in its queue, unless the run has one there already.

    Returns whether it did. A failure is logged, not raised: reconcile then continues the run.
    """
    message_id = str(uuid4())
    try:
        # Reserved first: a worker may take the message before `send` returns.
        if broker.reserve_handover(run.partition_key, message_id):
            _send_or_take_back(run, message_id, broker, sender)
            return True
    except StoreUnavailable as error:
        log.warning(
            "could not enqueue scheduler.dispatch", partition_key=run.partition_key, error=str(error)
        )
    return False


def replace_lost(run: Run, message_id: str, broker: BrokerState, sender: DispatchSender) -> bool:
    """Puts another handover in the place of one whose message is lost; says whether it did.

    It does not if a worker has got the message, or another pass was faster. If two passes are equally fast,
    the run gets two messages, of which one is an extra dispatcher. Raises StoreUnavailable.
    """
    return broker.take_handover(run.partition_key, message_id) and hand_over(run, broker, sender)


def arrived(partition_key: str, message_id: str, broker: BrokerState) -> bool:
    """Whether this message is the run's handover, which is then used up. Raises StoreUnavailable."""
    return broker.take_handover(partition_key, message_id)


def _send_or_take_back(run: Run, message_id: str, broker: BrokerState, sender: DispatchSender) -> None:
    try:
        sender.send(run.partition_key, run.queue, message_id)
    except StoreUnavailable:
        broker.take_handover(run.partition_key, message_id)
        raise
