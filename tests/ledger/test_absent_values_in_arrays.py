"""Lists in which a value is absent reach Postgres whatever `array_nulls` is."""

from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests.maintenance.situations import DAY
from tests.support.contexts import HandedClock, context_at
from tests.support.databases import url_of
from tests.support.ledger import Ledger
from tests.support.users import make_users
from worker_scheduler import embedded
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import batches, suspects, waiting_jobs
from worker_scheduler.ledger.waiting_jobs import WaitingJob


@pytest.fixture(params=["on", "off"])
def context(
    request: pytest.FixtureRequest, servers: embedded.Servers, database_url: str, deployed: None
) -> Iterator[TickContext]:
    name = urlsplit(database_url).path.lstrip("/")
    # Past a pooler, which keeps sessions that began before.
    with psycopg.connect(url_of(servers.database_url, name), autocommit=True) as connection:
        connection.execute(
            SQL("ALTER DATABASE {} SET array_nulls = {}").format(Identifier(name), SQL(request.param))
        )
    with context_at(HandedClock()) as context:
        yield context


def test_batches_without_a_broker_epoch(context: TickContext, ledger: Ledger) -> None:
    make_users(ledger.url, 4)
    tick.daily(context, DailyOptions(date=DAY))
    ledger.execute("UPDATE sync_batches SET enqueued_at = NULL, broker_epoch = NULL")
    run_id, now, epoch = ledger.value("SELECT run_id FROM sync_runs"), context.clock(), uuid4()
    holder = uuid4()
    with context.database.autocommit() as connection:
        claim = partial(batches.claim, limit=10, now=now, claimed_until=now)
        claimed = claim(connection, run_id, holder)
        batches.release(connection, claimed, holder)
        assert ledger.value("SELECT count(*) FROM sync_batches WHERE claimed_by IS NULL") == len(claimed)
        for broker_epoch in (None, epoch):
            claimed = claim(connection, run_id, holder)
            epochs = [broker_epoch] * len(claimed)
            marked = batches.mark_enqueued(connection, claimed, holder, broker_epochs=epochs, now=now)
            assert marked == {batch.number for batch in claimed} != set()
            assert ledger.value("SELECT broker_epoch FROM sync_batches") == broker_epoch
            ledger.execute("UPDATE sync_batches SET enqueued_at = NULL")


def test_jobs_that_were_published_on_their_own(context: TickContext, ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    tick.daily(context, DailyOptions(date=DAY))
    alone, by_batch = sorted(job["job_id"] for job in ledger.jobs())
    ledger.execute(
        f"UPDATE sync_jobs SET republished_in = gen_random_uuid(), republished_at = created_at"
        f" WHERE job_id = '{alone}'"
    )
    run_id, now = ledger.value("SELECT run_id FROM sync_runs"), context.clock()
    number = ledger.value("SELECT number FROM sync_batches")
    jobs = [WaitingJob(alone, None, 0), WaitingJob(by_batch, number, 0)]
    swapped = [WaitingJob(alone, number, 0), WaitingJob(by_batch, None, 0)]
    with context.database.transaction() as connection:
        assert waiting_jobs.still_waiting(connection, run_id, jobs, [now, now]) == {alone, by_batch}
        assert waiting_jobs.still_waiting(connection, run_id, swapped, [now, now]) == set()
        suspects.note(connection, run_id, "daily", jobs, now)
        assert waiting_jobs.make_due(connection, run_id, jobs, [now, now], now) == 2
    noted = ledger.rows("SELECT job_id, batch FROM sync_suspects ORDER BY job_id")
    assert [(row["job_id"], row["batch"]) for row in noted] == [(alone, None), (by_batch, number)]
