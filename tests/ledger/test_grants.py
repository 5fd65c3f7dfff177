"""The migration gives each role of an earlier version the rights that this version needs, and no more."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.ledger import Ledger
from worker_scheduler.ledger import inspection
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.schema import upgrade

DUMP = Path(__file__).with_name("version_0003.sql")

WORKERS = {
    "of columns": ["GRANT SELECT, UPDATE (status, attempt, leased_until) ON sync_jobs TO {role}"],
    "of the table": ["GRANT SELECT, UPDATE ON sync_jobs TO {role}"],
    "of a group": [
        "CREATE ROLE {group}",
        "GRANT UPDATE ON sync_jobs TO {group}",
        "GRANT {group} TO {role}",
    ],
}
"""Ways in which a role may change jobs in version 0003."""

HISTORIES = ("sync_requests", "sync_job_events")
NEW = (
    *HISTORIES,
    *("sync_retries", "sync_run_samples", "sync_queue_samples", "sync_schedule", "sync_stopped_runs"),
)

Migrated = Callable[..., str]


@pytest.fixture
def migrated(direct_database_url: str) -> Iterator[Migrated]:
    """Makes a role by statements, then migrates from 0003; returns the role. {role}, {group}: the names."""
    ledger = Ledger(direct_database_url)
    ledger.execute(DUMP.read_text())
    names = {"role": f'"odd role {uuid4().hex[:8]}"', "group": f"group_{uuid4().hex[:8]}"}
    made = [names["role"]]

    def migrate(*statements: str) -> str:
        ledger.execute(
            f"CREATE ROLE {names['role']}", *(statement.format(**names) for statement in statements)
        )
        made.extend([names["group"]] if any("{group}" in statement for statement in statements) else [])
        database = Database(direct_database_url.replace("postgresql:", "postgresql+psycopg:", 1))
        upgrade(database)
        database.dispose()
        return names["role"].strip('"')

    yield migrate
    for role in made:
        ledger.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def rights(ledger: Ledger, role: str) -> dict[str, str]:
    """What the role may do with the new tables: S, I, U, D."""
    return {
        table: "".join(
            right[0]
            for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
            if ledger.value("SELECT has_table_privilege(%s, %s, %s)", role, table, right)
        )
        for table in NEW
    }


def missing(ledger: Ledger) -> dict[str, list[str]]:
    database = Database(ledger.url.replace("postgresql:", "postgresql+psycopg:", 1))
    with database.autocommit() as connection:
        found = inspection.missing_rights_of_workers(connection)
    database.dispose()
    return found


@pytest.mark.parametrize("way", WORKERS)
def test_whoever_may_change_jobs_may_do_what_workers_need(
    way: str, migrated: Migrated, direct_database_url: str
) -> None:
    ledger = Ledger(direct_database_url)
    role = migrated(*WORKERS[way])
    assert rights(ledger, role) == dict.fromkeys(NEW, "") | {
        "sync_job_events": "I",
        "sync_stopped_runs": "S",
    }
    for column in ("cancelled_at", "reason_class", "reason_fingerprint"):
        assert ledger.value("SELECT has_column_privilege(%s, 'sync_jobs', %s, 'UPDATE')", role, column)
    lacked = missing(ledger).get(role, [])
    assert not [right for right in lacked if "UPDATE" not in right]


def test_no_worker_may_write_the_history_of_requests(migrated: Migrated, direct_database_url: str) -> None:
    ledger = Ledger(direct_database_url)
    role = migrated(*WORKERS["of the table"])
    rows = ledger.rows("SELECT relid::regclass::text AS name FROM pg_partition_tree('sync_requests')")
    tables = {row["name"] for row in rows}
    assert {"sync_requests", "sync_requests_monthless"} < tables
    for table in tables:
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"):
            assert not ledger.value("SELECT has_table_privilege(%s, %s, %s)", role, table, right)
    call = "sync_history_add_month(text, integer, integer)"
    assert not ledger.value("SELECT has_function_privilege(%s, %s, 'EXECUTE')", role, call)


def test_whoever_may_open_runs_may_do_what_ticks_need(migrated: Migrated, direct_database_url: str) -> None:
    ledger = Ledger(direct_database_url)
    role = migrated(
        "GRANT SELECT, INSERT, UPDATE ON sync_runs, sync_jobs TO {role}",
    )
    needed = {table: "".join(right[0] for right in inspection.RIGHTS[table].split()) for table in NEW}
    assert rights(ledger, role) == needed
    call = "sync_history_add_month(text, integer, integer)"
    assert ledger.value("SELECT has_function_privilege(%s, %s, 'EXECUTE')", role, call)


def test_whoever_may_read_runs_may_read_the_rest(migrated: Migrated, direct_database_url: str) -> None:
    role = migrated("GRANT SELECT ON sync_runs TO {role}")
    assert rights(Ledger(direct_database_url), role) == dict.fromkeys(NEW, "S")


def test_others_get_nothing(migrated: Migrated, direct_database_url: str) -> None:
    role = migrated("GRANT SELECT ON sync_jobs TO {role}")
    assert rights(Ledger(direct_database_url), role) == dict.fromkeys(NEW, "")
