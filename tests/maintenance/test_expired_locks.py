"""The rule expired_locks: a lock is removed when its lease has run out."""

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.maintenance.situations import KEY, LEASE
from tests.support.contexts import INSTANT, HandedClock
from tests.support.ledger import Ledger
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import locks
from worker_scheduler.maintenance import reconciler


@pytest.mark.parametrize(("age", "removed"), [(LEASE - INSTANT, 0), (LEASE, 1)])
def test_a_lock_goes_when_its_lease_ran_out(
    age: timedelta, removed: int, context: TickContext, ledger: Ledger, clock: HandedClock
) -> None:
    with context.database.autocommit() as connection:
        assert locks.acquire(
            connection, 1, uuid4(), partition_key=KEY, now=clock(), leased_until=clock() + LEASE
        )
    clock.forward(age)
    assert reconciler.expired_locks(context) == removed
    assert ledger.value("SELECT count(*) FROM sync_locks") == 1 - removed
    assert reconciler.expired_locks(context) == 0
