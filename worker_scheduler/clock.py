"""The type of a clock, and the clock of this host.

Facts in the ledger have the time of ledger/clock.py, which wiring.py passes on; hosts disagree. This host's
clock is only compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

Clock = Callable[[], datetime]
"""Returns the present time as an aware datetime in UTC."""


@runtime_checkable
class AskingClock(Protocol):
    """A clock that asks a server for the time, and counts on from the answer."""

    def __call__(self) -> datetime:
        """Returns the present time in UTC."""

    def ask_again(self) -> None:
        """Asks the server again if its last answer is old."""


def refresh(clock: Clock) -> None:
    """Lets a clock that counts on from an answer ask again; other clocks need no refresh.

    To be called at each heartbeat, while no connection to Postgres is held: the clock uses one.
    """
    if isinstance(clock, AskingClock):
        clock.ask_again()


def utc_now() -> datetime:
    """Returns the time of this host in UTC."""
    return datetime.now(UTC)
