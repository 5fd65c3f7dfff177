"""Notes in the ledger in which broker epoch a tick publishes, and where; reconcile does the same.

Reconcile learns from that whether the ledger is used with two brokers (maintenance/rules/epochs.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.ledger import broker_epochs

_AGAIN_AFTER = timedelta(seconds=30)
"""An epoch is noted with the first batch, and in a long tick now and then."""


@dataclass
class EpochNotes:
    """The notes of one dispatcher. broker: the place, safe to show."""

    broker: str
    _after_look: int = 0
    _looked_at: datetime | None = None
    _noted: set[UUID] = field(default_factory=set)

    def before_publishing(self, connection: Connection, now: datetime) -> None:
        """Begins another look, if the last one is too long ago."""
        if self._looked_at is None or now - self._looked_at >= _AGAIN_AFTER:
            self._after_look = broker_epochs.latest_look(connection)
            self._looked_at = now
            self._noted.clear()

    def after_publishing(
        self, connection: Connection, epochs: Iterable[UUID | None], now: datetime
    ) -> None:
        """Notes the epochs in which batches were published, each once per look."""
        for epoch in {epoch for epoch in epochs if epoch is not None} - self._noted:
            broker_epochs.note(connection, epoch, self.broker, after_look=self._after_look, now=now)
            self._noted.add(epoch)
