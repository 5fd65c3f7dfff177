"""Fixtures for tests of real workers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.command_line import Outcome
from tests.support.contexts import NOON, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.own_worker import Deployment
from tests.support.site import KEY, LEASE_SECONDS, Site
from tests.support.users import make_users
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.worker.claims import Worker


@pytest.fixture
def site(
    deployed: None,
    ledger: Ledger,
    broker: Broker,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    own = {
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "DAILY_TICK_CRON": "0 0 29 2 *",  # no day becomes due during the test
        "HANDLER_FOLDER": str(tmp_path),
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    make_users(ledger.url, 1)
    with context_at(utc_now) as context:
        assert tick.daily(context, DailyOptions()).jobs_enqueued == 1
        yield Site(context, ledger, broker, environment | own, tmp_path)


@pytest.fixture
def job_id(scheduler: Callable[..., Outcome], ledger: Ledger) -> UUID:
    """A job that waits, in the partition KEY."""
    make_users(ledger.url, 1)
    scheduler("backfill", "--backfill-days=30", f"--partition-key={KEY}")
    found: UUID = ledger.value("SELECT job_id FROM sync_jobs")
    return found


@pytest.fixture
def deployment(deployed: None, ledger: Ledger) -> Iterator[Deployment]:
    clock = HandedClock()
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON}'")
    with context_at(clock) as context:
        worker = Worker(context.database, clock, context.settings.lease, max_attempts=3)
        yield Deployment(context, worker, clock, ledger)
