"""The ledger's clock: that of Postgres. Facts in the ledger have its time, whatever a host's clock says.

A process asks Postgres once and counts on with its monotonic clock, so the time costs no round trip. It
asks again at heartbeats, since a monotonic clock runs a little too fast or too slow, and stands still while
the machine is suspended.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from worker_scheduler import logs
from worker_scheduler.clock import Clock, utc_now
from worker_scheduler.errors import SchedulerError
from worker_scheduler.ledger.database import Database

log = logs.get_logger(__name__)

# Microseconds since 1970 as a number: no setting of a server, role or database changes how that is written.
_NOW = text("SELECT CAST(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000 AS bigint)")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_JUMP_SECONDS = 1.0
"""If the two clocks of this host disagree by more than this about the time since the last answer, one of
them was set or stood still, as the monotonic clock does while the machine is suspended.
"""


_SECONDS_BETWEEN_TRIES = 0.1
"""So that a clock that was set while Postgres is away is not asked for at each job."""


@dataclass(frozen=True)
class _Answer:
    """What Postgres said, and what the two clocks of this host read then."""

    said: datetime
    monotonic: float
    host: datetime


def now(connection: Connection) -> datetime:
    """The time of Postgres in UTC, while the statement runs."""
    return _EPOCH + timedelta(microseconds=connection.execute(_NOW).scalar_one())


class HostWatch:
    """Names this host in the log when its clock differs from Postgres' by more than `allowed_seconds`.

    Once, and again only after its clock was right in between.
    """

    def __init__(self, allowed_seconds: float) -> None:
        self._allowed_seconds = allowed_seconds
        self._is_named = False

    def __call__(self, ahead_seconds: float) -> None:
        """Compares. ahead_seconds: how far this host is ahead of Postgres; negative if it is behind."""
        differs = abs(ahead_seconds) > self._allowed_seconds
        if differs and not self._is_named:
            log.warning(
                "this host's clock differs from that of Postgres",
                host=socket.gethostname(),
                ahead_seconds=round(ahead_seconds, 1),
                remedy="let NTP set both; the ledger has the time of Postgres",
            )
        self._is_named = differs


class LedgerClock:
    """Returns the time of Postgres in UTC. Threads may share it.

    The first call asks Postgres, and raises StoreUnavailable or another SchedulerError if it does not
    answer. After that it counts on, also while Postgres is away.

    ask_every_seconds: how old an answer may be before `ask_again` asks. host, monotonic: the two clocks of
    this host. on_difference: gets the seconds by which the host is ahead of Postgres at each answer,
    negative if it is behind.
    """

    def __init__(
        self,
        database: Database,
        *,
        ask_every_seconds: float,
        host: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        on_difference: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._ask_every_seconds = ask_every_seconds
        self._host = host
        self._monotonic = monotonic
        self._on_difference = on_difference
        self._asking = threading.Lock()
        self._answer: _Answer | None = None
        self._tried_at = float("-inf")

    def __call__(self) -> datetime:
        """Returns the present time. Only the first call asks Postgres for it."""
        answer = self._answer
        if answer is None:
            with self._asking:
                answer = self._answer or self._ask()
        return self._counted(answer)

    def ask_again(self) -> None:
        """Asks Postgres again if the last answer is old, or if this host was suspended or its clock set.

        Does not raise: a clock that has asked once goes on counting while Postgres is away.
        """
        if self._answer is None or not self._is_due(self._answer):
            return
        if not self._asking.acquire(blocking=False):
            return  # another thread is asking
        try:
            self._ask()
        except SchedulerError as error:
            log.debug("the ledger's clock counts on without Postgres", error=str(error))
        finally:
            self._asking.release()

    @property
    def host_ahead_seconds(self) -> float:
        """The seconds by which this host's clock is ahead of Postgres'; negative if it is behind."""
        return (self._host() - self()).total_seconds()

    def _is_due(self, answer: _Answer) -> bool:
        monotonic = self._monotonic()
        since_try = monotonic - self._tried_at
        if since_try >= self._ask_every_seconds:
            return True
        passed_on_host = (self._host() - answer.host).total_seconds()
        has_jumped = abs(passed_on_host - (monotonic - answer.monotonic)) > _JUMP_SECONDS
        return has_jumped and since_try >= _SECONDS_BETWEEN_TRIES

    def _ask(self) -> _Answer:
        """Asks Postgres, which reads its clock at some moment between question and answer.

        The middle of the two is off by at most half the round trip, and errs to neither side: a lease is as
        little cut short as prolonged. A count that lies between the bounds may be better than this answer,
        for example if Postgres took seconds to answer; it stays.
        """
        self._tried_at = self._monotonic()
        with self._database.autocommit() as connection:
            asked = self._monotonic()
            said = now(connection)
            answered, host = self._monotonic(), self._host()
        round_trip = timedelta(seconds=answered - asked)
        answer = _Answer(said + round_trip / 2, answered, host)
        if self._answer is not None:
            counted = self._counted_at(self._answer, answered)
            if said <= counted <= said + round_trip:
                answer = _Answer(counted, answered, host)
        self._answer = answer
        self._on_difference((host - answer.said).total_seconds())
        return answer

    def _counted(self, answer: _Answer) -> datetime:
        return self._counted_at(answer, self._monotonic())

    @staticmethod
    def _counted_at(answer: _Answer, monotonic: float) -> datetime:
        return answer.said + timedelta(seconds=monotonic - answer.monotonic)
