"""The fixtures of the tests about due days."""

from collections.abc import Iterator

import pytest

from tests.fanout.days import SLOT, given
from tests.support.contexts import HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler.fanout.context import TickContext


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock(SLOT)


@pytest.fixture
def context(deployed: None, ledger: Ledger, clock: HandedClock) -> Iterator[TickContext]:
    """A context at 02:00 UTC."""
    make_users(ledger.url, 3)
    with context_at(clock) as context:
        yield context


@pytest.fixture
def nobody(deployed: None, ledger: Ledger, clock: HandedClock) -> Iterator[TickContext]:
    """A context without users, so that a run takes little time."""
    make_users(ledger.url, 0)
    with context_at(clock) as context:
        yield given(context, scheduler_lock_enabled=False)
