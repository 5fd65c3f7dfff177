"""`scheduler migrate` from the last version, while workers of that version run jobs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from time import monotonic
from uuid import UUID

import psycopg
import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.waiting import wait_until
from worker_scheduler import wiring
from worker_scheduler.config.settings import load
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import months, schema

pytestmark = pytest.mark.slow

Scheduler = Callable[..., Outcome]
DUMP = Path(__file__).with_name("version_0003.sql")
RUN = "01a21dc1-5a31-78a2-b0bd-63573aa91559"
"""A run of the dump, in November 2026."""
WORKERS = 3

# Every statement of a worker of version 0003, as its code had them.
WITHIN = "job_id = %(job_id)s AND run_id BETWEEN %(first)s AND %(last)s"
CLAIM = f"""
    UPDATE sync_jobs SET status = 'RUNNING', attempt = attempt + 1, started_at = %(now)s,
        leased_until = %(leased_until)s, not_before = NULL
    WHERE {WITHIN} AND status = 'PENDING'
        AND (not_before IS NULL OR not_before <= %(now)s OR leased_until IS NOT NULL)
    RETURNING job_id, run_id, user_id, github_login, partition_key, triggered_by, backfill_days, attempt
"""
RUNNING = """
    SELECT job_id, run_id, user_id, github_login, partition_key, triggered_by, backfill_days, attempt
    FROM sync_jobs WHERE job_id = %(job_id)s AND status = 'RUNNING'
"""
EXTEND = f"""
    UPDATE sync_jobs SET leased_until = %(leased_until)s
    WHERE {WITHIN} AND status = 'RUNNING' AND attempt = %(attempt)s
"""
FINISH = f"""
    UPDATE sync_jobs SET status = 'COMPLETED', error_message = %(error)s,
        completed_at = %(now)s, leased_until = NULL
    WHERE {WITHIN} AND status = 'RUNNING' AND attempt = %(attempt)s
"""
MORE_JOBS = f"""
    INSERT INTO sync_jobs (job_id, user_id, github_login, triggered_by, partition_key, run_id)
    SELECT CAST('01a21dc1-5a4a-7951-9000-' || lpad(to_hex(n), 12, '0') AS uuid),
        md5('more-' || n)::uuid, 'more-' || n, 'scheduler.daily', 'daily:2026-11-23', '{RUN}'
    FROM generate_series(1, 60000) n
    RETURNING job_id
"""


@pytest.fixture
def earlier(direct_database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger of the dump, with which this process is configured."""
    monkeypatch.setenv("DATABASE_URL", direct_database_url)
    ledger = Ledger(direct_database_url)
    ledger.execute(DUMP.read_text())
    return ledger


class OldWorkers:
    """Threads that work like workers of version 0003, until they are stopped."""

    def __init__(self, url: str, job_ids: list[UUID]) -> None:
        self._url = url
        self._job_ids = iter(job_ids)
        self._stopped = Event()
        self.done: list[UUID] = []
        self.longest = 0.0

    def work(self) -> None:
        month = months.month_of(UUID(RUN))
        assert month is not None
        first, following = months.run_ids_of(month)
        # As a worker does on a direct connection: each statement is prepared, with one plan for all keys.
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=1) as connection:
            connection.execute("SET plan_cache_mode = force_generic_plan")
            for job_id in self._job_ids:
                if self._stopped.is_set():
                    return
                began = monotonic()
                now = datetime.now(UTC)
                parameters = {
                    "job_id": job_id,
                    "first": first,
                    "last": UUID(int=following.int - 1),
                    "now": now,
                    "leased_until": now + timedelta(seconds=45),
                    "error": None,
                }
                claimed = connection.execute(CLAIM, parameters).fetchone()
                assert claimed is not None
                assert connection.execute(RUNNING, parameters).fetchone() == claimed
                parameters |= {"attempt": claimed[-1], "first": RUN, "last": RUN}
                assert connection.execute(EXTEND, parameters).rowcount == 1
                assert connection.execute(FINISH, parameters).rowcount == 1
                self.longest = max(self.longest, monotonic() - began)
                self.done.append(job_id)

    def stop(self) -> None:
        self._stopped.set()


@pytest.fixture
def reader(earlier: Ledger) -> Iterator[psycopg.Connection]:
    """A transaction that has read the jobs and stays open, like a backup."""
    with psycopg.connect(earlier.url) as connection:
        connection.execute("SELECT count(*) FROM sync_jobs")
        yield connection


def test_a_ledger_is_migrated_while_workers_of_the_last_version_run_jobs(
    earlier: Ledger, scheduler: Scheduler
) -> None:
    job_ids = [row["job_id"] for row in earlier.rows(MORE_JOBS)]
    before = earlier.count()
    workers = OldWorkers(earlier.url, job_ids)
    with ThreadPoolExecutor(WORKERS + 1) as threads, psycopg.connect(earlier.url) as reader:
        working = [threads.submit(workers.work) for _ in range(WORKERS)]
        try:
            wait_until(lambda: len(workers.done) > 50, 30, "the workers' start")
            reader.execute("SELECT count(*) FROM sync_jobs")  # a backup begins
            migrating = threads.submit(scheduler, "migrate")
            wait_until(lambda: waits_for_lock(earlier), 30, "the migration's first try")
            wait_until(lambda: not waits_for_lock(earlier), 30, "the end of that try")
            while_held = len(workers.done)
            wait_until(lambda: len(workers.done) > while_held + 20, 30, "claims between two tries")
            reader.rollback()
            outcome = migrating.result(60)
            migrated_at = len(workers.done)
            wait_until(lambda: len(workers.done) > migrated_at + 50, 30, "old workers on the new tables")
        finally:
            workers.stop()
        for worker in working:
            worker.result(30)
    assert (outcome.status, outcome.errors) == (0, [])
    assert len(workers.done) < len(job_ids), "the workers ran out of jobs"
    assert earlier.count() == before
    rows = earlier.rows(
        "SELECT job_id, attempt FROM sync_jobs WHERE status <> 'PENDING' AND left(github_login, 4) = 'more'"
    )
    assert {row["job_id"] for row in rows} == set(workers.done)
    assert {row["attempt"] for row in rows} == {1}
    # A claim waits behind the migration's try: a second, and what the machine adds.
    assert workers.longest < 5


def test_the_first_end_of_finished_runs_is_known_after_the_migration(
    earlier: Ledger, scheduler: Scheduler
) -> None:
    ended = datetime(2026, 11, 28, 3, tzinfo=UTC)
    earlier.execute(
        f"UPDATE sync_runs SET state = 'FINISHED', finished_at = '{ended}', completed = 1, failed = 2,"
        " skipped = 3 WHERE partition_key = 'backfill:spring'"
    )
    assert scheduler("migrate").status == 0
    known = {
        row.pop("partition_key"): tuple(row.values())
        for row in earlier.rows(
            "SELECT partition_key, first_finished_at, first_completed, first_failed, first_skipped,"
            " cancelled FROM sync_runs"
        )
    }
    assert known.pop("backfill:spring") == (ended, 1, 2, 3, 0)
    assert set(known.values()) == {(None,) * 5}


def waits_for_lock(ledger: Ledger) -> bool:
    return bool(ledger.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode LIKE 'AccessExcl%'"))


def test_a_migration_that_never_gets_its_lock_changes_nothing_and_says_how_to_go_on(
    earlier: Ledger, reader: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LONGEST_WAIT", "50ms")
    database = wiring.open_database(load(), size=1)
    pauses: list[float] = []
    before = earlier.everything()
    with pytest.raises(StoreUnavailable, match="another transaction used them for over 50ms: end it"):
        schema.upgrade(database, pause=pauses.append)
    assert len(pauses) == schema._TRIES - 1
    assert earlier.everything() == before
    reader.rollback()
    assert schema.upgrade(database) == schema.NEWEST_VERSION
    database.dispose()


@pytest.mark.parametrize("table", ["sync_runs", "sync_jobs", "sync_jobs_2026_11", "sync_origin"])
def test_a_migration_goes_on_when_the_lock_is_free(
    table: str, earlier: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LONGEST_WAIT", "50ms")
    database = wiring.open_database(load(), size=1)
    with psycopg.connect(earlier.url) as other:
        other.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode())
        assert schema.upgrade(database, pause=lambda _: other.rollback()) == schema.NEWEST_VERSION
    database.dispose()


def test_two_migrations_do_not_wait_for_each_other_for_ever(
    earlier: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LONGEST_WAIT_FOR_ANOTHER", "50ms")
    database = wiring.open_database(load(), size=1)
    with psycopg.connect(earlier.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(x'7761766500'::bigint)")
        with pytest.raises(StoreUnavailable, match="another process has been changing the tables for 50ms"):
            schema.upgrade(database)
    database.dispose()


def test_the_new_code_refuses_the_tables_until_they_are_migrated(
    earlier: Ledger, scheduler: Scheduler
) -> None:
    for command in (("daily",), ("reconcile",), ("backfill", "--backfill-days", "7")):
        outcome = scheduler(*command)
        assert outcome.status == 2
        assert "the tables have version 0003, this code needs" in outcome.error
