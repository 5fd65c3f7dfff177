"""Under a publication FOR ALL TABLES, Postgres refuses UPDATE and DELETE of a table without a key."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.older_scheduler import OLDER_SCHEDULERS, OlderScheduler
from tests.support.users import make_users
from worker_scheduler import wiring
from worker_scheduler.config.settings import load
from worker_scheduler.ledger import months
from worker_scheduler.ledger.all_tables import metadata
from worker_scheduler.ledger.names import VERSION_TABLE

Scheduler = Callable[..., Outcome]
DUMP = Path(__file__).with_name("version_0003.sql")
KEY = "daily:2026-11-24"
DIVIDED = {"sync_jobs", "sync_requests", "sync_job_events"}
ALL_TABLES = "CREATE PUBLICATION everything FOR ALL TABLES"
OURS = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(sync_|worker_scheduler)' ORDER BY 1"
)


@pytest.fixture
def fresh(empty_database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("LEASE_SECONDS", "1")  # reconcile looks at a dead worker's jobs for half of it
    return Ledger(empty_database_url)


def change_every_table(ledger: Ledger) -> set[str]:
    """Tries an UPDATE and a DELETE of no row, which Postgres refuses like one of a row."""
    tables = {row["relname"] for row in ledger.rows(OURS)}
    for table in tables:
        column = ledger.value(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND NOT attisdropped LIMIT 1",
            table,
        )
        ledger.execute(f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table} WHERE false")
    return tables


def work_through_a_day(ledger: Ledger, scheduler: Scheduler) -> None:
    make_users(ledger.url, 3)
    assert scheduler("daily", "--date", "2026-11-24", "--json").report["jobs_enqueued"] == 3
    for job in ledger.jobs(KEY):
        wiring.process_worker().run(job["job_id"], lambda _: None)
    assert ledger.states(KEY) == {"COMPLETED": 3}
    assert scheduler("reconcile").status == 0
    assert scheduler("status", KEY, "--json").report["state"] == "FINISHED"


def test_every_table_of_a_new_ledger_has_a_replica_identity(fresh: Ledger, scheduler: Scheduler) -> None:
    fresh.execute(ALL_TABLES)
    assert scheduler("migrate").status == 0
    database = wiring.open_database(load(), size=1)
    with database.autocommit() as connection:
        assert months.ensure(connection, months.new_run_id(datetime(2031, 3, 5, tzinfo=UTC))) is True
    database.dispose()
    assert change_every_table(fresh) >= {
        *(set(metadata.tables) - DIVIDED),
        *(f"{table}_monthless" for table in DIVIDED),
        *("sync_jobs_2031_03", VERSION_TABLE),
    }
    work_through_a_day(fresh, scheduler)


def test_an_earlier_ledger_is_upgraded_under_a_publication(fresh: Ledger, scheduler: Scheduler) -> None:
    fresh.execute(DUMP.read_text(), ALL_TABLES)
    assert scheduler("migrate").status == 0
    change_every_table(fresh)
    work_through_a_day(fresh, scheduler)


NO_KEY = next(older for older in OLDER_SCHEDULERS if older.name == "no key, no defaults")


@pytest.mark.parametrize(
    ("older", "identity"),
    [
        (NO_KEY, "f"),
        (OlderScheduler("no identity", after=("ALTER TABLE sync_jobs REPLICA IDENTITY NOTHING",)), "f"),
        (
            OlderScheduler(
                "an identity by index",
                key="job_id uuid NOT NULL UNIQUE",
                after=("ALTER TABLE sync_jobs REPLICA IDENTITY USING INDEX sync_jobs_job_id_key",),
            ),
            "i",
        ),
        (
            OlderScheduler(
                "a key that is checked late",
                key="job_id uuid PRIMARY KEY DEFERRABLE INITIALLY DEFERRED",
            ),
            "f",
        ),
        (OLDER_SCHEDULERS[0], "d"),
    ],
    ids=lambda value: value.name if isinstance(value, OlderScheduler) else value,
)
def test_an_adopted_table_has_a_replica_identity(
    older: OlderScheduler, identity: str, fresh: Ledger, scheduler: Scheduler
) -> None:
    older.leave_behind(fresh.url, 2)
    fresh.execute(ALL_TABLES)
    outcome = scheduler("migrate")
    assert outcome.status == 0, outcome
    assert fresh.value("SELECT relreplident FROM pg_class WHERE oid = 'sync_jobs'::regclass") == identity
    change_every_table(fresh)
    work_through_a_day(fresh, scheduler)
