"""What every verb begins and ends with: the run that is meant, the time, and a row in sync_requests."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.clock import Clock
from worker_scheduler.errors import BadInput
from worker_scheduler.ledger import control, requests, schema
from worker_scheduler.ledger.control import ControlledRun
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.redaction import show

SCHEDULE = "daily"
"""The key that means the daily schedule."""

_NEAREST = 3


@dataclass(frozen=True)
class Request:
    """A verb that somebody asked for."""

    database: Database
    clock: Clock
    asked: Asked

    @property
    def key(self) -> str:
        """The key of the partition."""
        return self.asked.partition_key or ""

    def refusals_recorded(self) -> AbstractContextManager[None]:
        """Notes in sync_requests why the block was refused."""
        return requests.refusals_recorded(self.database, self.clock, self.asked)

    def change_run(
        self, change: Callable[[Connection, ControlledRun, datetime], str]
    ) -> tuple[ControlledRun, str]:
        """Locks the run, changes it, and records the request with the outcome that `change` returns; all in
        one transaction. Returns the run as it was, and that outcome.

        Raises BadInput if there is no such run, and what `change` raises.
        """
        with self.database.autocommit() as connection:
            schema.require_current(connection)
        now = self.clock()
        with self.database.transaction() as connection:
            run = control.lock(connection, self.key, now)
            if run is None:
                raise _unknown(self.key, control.newest_keys(connection))
            outcome = change(connection, run, now)
            self._record(connection, outcome, now, run.run_id)
        return run, outcome

    def change_schedule(self, change: Callable[[Connection, datetime], str]) -> str:
        """Changes the schedule and records the request, in one transaction; returns the outcome."""
        with self.database.autocommit() as connection:
            schema.require_current(connection)
        now = self.clock()
        with self.database.transaction() as connection:
            outcome = change(connection, now)
            self._record(connection, outcome, now, None)
        return outcome

    def _record(self, connection: Connection, outcome: str, now: datetime, run_id: UUID | None) -> None:
        requests.record(connection, self.asked, outcome, now=now, run_id=run_id)


def _unknown(key: str, keys: list[str]) -> BadInput:
    nearest = difflib.get_close_matches(key, keys, n=_NEAREST, cutoff=0.0)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "there is no run yet"
    return BadInput(f"there is no run of {show(key)}: {hint}")
