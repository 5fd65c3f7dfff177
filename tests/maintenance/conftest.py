"""A context whose clock the test moves, in a deployment in which no day is due."""

from collections.abc import Iterator

import pytest

from tests.support.contexts import NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from worker_scheduler.fanout.context import TickContext


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, ledger: Ledger, clock: HandedClock) -> Iterator[TickContext]:
    # Deployed at noon: no slot is due.
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON}'")
    with context_at(clock, enqueue_batch_size=10) as context:
        yield context
