"""What a tick and reconcile work with, given by the entry points. It holds no state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from worker_scheduler.clock import Clock
from worker_scheduler.config.settings import Settings
from worker_scheduler.fanout.dispatcher_requests import DispatcherRequests
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.users import UsersRelation
from worker_scheduler.publisher import Publisher
from worker_scheduler.publisher.broker import BrokerState
from worker_scheduler.publisher.dispatch_message import DispatchSender


@dataclass(frozen=True)
class TickContext:
    """What a tick works with.

    pause: waits that many seconds. on_progress: gets the report after each batch. requested_by: who asked
    for the tick, as the run's row records it. dispatcher_requests: how to ask for more dispatchers, and
    what to do when the queue of the jobs is full. dispatch_sender: sends a handover in the place of a
    lost one. on_opened: gets the report once this tick has opened its run; not called if the tick joins
    another one. actor: who is behind a request whose options name nobody. request_id: the id of the request
    in the history; a task that is executed again has the same.
    """

    settings: Settings
    database: Database
    publisher: Publisher
    broker: BrokerState
    clock: Clock
    pause: Callable[[float], None]
    on_progress: Callable[[Report], None]
    requested_by: str
    dispatcher_requests: DispatcherRequests
    dispatch_sender: DispatchSender
    on_opened: Callable[[Report], None] = lambda _: None
    actor: str = "unknown"
    request_id: UUID = field(default_factory=uuid4)

    @property
    def relation(self) -> UsersRelation:
        """The application's users."""
        return UsersRelation(self.settings.users_relation)
