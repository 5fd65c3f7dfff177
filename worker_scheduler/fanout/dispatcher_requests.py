"""How a process asks for dispatchers other than itself: one way each for the command, a task and reconcile.

The ways differ in what happens when the queue of the jobs is full (MAX_QUEUE_DEPTH).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from worker_scheduler import logs
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout import handover
from worker_scheduler.ledger.runs import Run
from worker_scheduler.publisher.broker import BrokerState
from worker_scheduler.publisher.dispatch_message import DispatchSender

log = logs.get_logger(__name__)

_QUEUE = "scheduler"


class DispatcherRequests(Protocol):
    """Asks for dispatchers of a run. A failed request is logged, not raised: reconcile does the rest."""

    @property
    def waits(self) -> bool:
        """Whether this process waits for space in a full queue, and for batches that others hold."""

    def request_extra(self, partition_key: str, number: int) -> None:
        """Asks for `number` dispatchers that share the work with this process, from now on."""

    def continue_later(self, run: Run) -> None:
        """Asks for a dispatcher that sends the batches this process leaves because the queue is full."""


@dataclass(frozen=True)
class CommandRequests:
    """The command's way. The command waits for space itself, so it leaves no batch to others."""

    sender: DispatchSender
    waits = True

    def request_extra(self, partition_key: str, number: int) -> None:
        """Sends `number` messages of `scheduler.dispatch`, until one cannot be sent."""
        _request_extra(self.sender, partition_key, number)

    def continue_later(self, run: Run) -> None:
        """Asks for nothing."""


@dataclass(frozen=True)
class TaskRequests:
    """A task's way: it hands the run over. If it waited, it would occupy a process of the workers that have
    to drain the queue.
    """

    sender: DispatchSender
    broker: BrokerState
    waits = False

    def request_extra(self, partition_key: str, number: int) -> None:
        """Sends `number` messages of `scheduler.dispatch`, until one cannot be sent."""
        _request_extra(self.sender, partition_key, number)

    def continue_later(self, run: Run) -> None:
        """Hands the run over, behind the jobs that fill the queue."""
        handover.hand_over(run, self.broker, self.sender)


@dataclass(frozen=True)
class ReconcileRequests:
    """Reconcile's way: it leaves the rest to the next pass. `others` asks for the extra dispatchers."""

    others: DispatcherRequests
    waits = False

    def request_extra(self, partition_key: str, number: int) -> None:
        """Asks as `others` does."""
        self.others.request_extra(partition_key, number)

    def continue_later(self, run: Run) -> None:
        """Asks for nothing: otherwise each pass would put one more message into a queue that is full."""


def _request_extra(sender: DispatchSender, partition_key: str, number: int) -> None:
    try:
        for _ in range(number):
            sender.send(partition_key, _QUEUE, str(uuid4()))
    except StoreUnavailable as error:
        # The run's own dispatcher does the work, or meets the same outage and reports it.
        log.warning("could not enqueue scheduler.dispatch", partition_key=partition_key, error=str(error))
