"""What a tick and reconcile work with, handed down from the entry points. It holds no state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker_scheduler.clock import Clock
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.users import UsersRelation
from worker_scheduler.publisher import Publisher
from worker_scheduler.publisher.broker import BrokerState
from worker_scheduler.report import Report
from worker_scheduler.settings import Settings


def to_nobody(_partition_key: str, _queue: str) -> None:
    """Passes a run on to nobody: whoever works on it waits, or reconcile goes on."""


@dataclass(frozen=True)
class TickContext:
    """What a tick works with.

    pause: waits so many seconds. on_progress: is shown the report after each batch.
    requested_by: who rang, for the run's row. patient: whether dispatch waits while the queue is full;
    else it leaves the rest. pass_on: asks for a dispatcher of the run of a partition, when workers have
    drained this queue. call_dispatchers: asks for so many more dispatchers now.
    """

    settings: Settings
    database: Database
    publisher: Publisher
    broker: BrokerState
    clock: Clock
    pause: Callable[[float], None]
    on_progress: Callable[[Report], None]
    requested_by: str
    call_dispatchers: Callable[[str, int], None]
    patient: bool = True
    pass_on: Callable[[str, str], None] = to_nobody

    @property
    def relation(self) -> UsersRelation:
        """The application's users."""
        return UsersRelation(self.settings.users_relation)
