"""The migrations: they make the tables that `tables.py` describes, once, whoever runs them."""

import re
from collections.abc import Callable
from enum import StrEnum

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Table, create_engine

from tests.support.command_line import Outcome
from tests.support.herd import run_herd
from tests.support.ledger import Ledger, Row
from tests.support.older_scheduler import OlderScheduler
from worker_scheduler.ledger.schema import VERSION_TABLE, newest_version
from worker_scheduler.ledger.tables import JobStatus, Kind, RunState, metadata

Scheduler = Callable[..., Outcome]

CONSTRAINTS = """
SELECT conrelid::regclass::text AS table_name, conname,
    pg_get_constraintdef(pg_constraint.oid) AS definition
FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
WHERE contype <> 'n' AND conrelid::regclass::text LIKE 'sync%%' AND NOT c.relispartition
ORDER BY 1, 2
"""
INDEXES = """
SELECT indexname, indexdef FROM pg_indexes JOIN pg_class c ON c.oid = to_regclass(tablename)
WHERE tablename LIKE 'sync%%' AND NOT c.relispartition ORDER BY 1
"""


def sqlalchemy_url(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:", 1)


def constraints(ledger: Ledger) -> list[Row]:
    return ledger.rows(CONSTRAINTS.replace("%%", "%"))


def indexes(ledger: Ledger) -> list[Row]:
    return ledger.rows(INDEXES.replace("%%", "%"))


def test_the_migrations_make_what_the_tables_say(ledger: Ledger, empty_database_url: str) -> None:
    with create_engine(sqlalchemy_url(ledger.url)).connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": VERSION_TABLE,
                # The partitions follow from the whole.
                "include_object": lambda _, name, kind, *__: kind != "table" or name in metadata.tables,
            },
        )
        assert compare_metadata(context, metadata) == []
    # Alembic compares no CHECK, no partial index's condition and no way of indexing.
    metadata.create_all(create_engine(sqlalchemy_url(empty_database_url)))
    described = Ledger(empty_database_url)
    assert constraints(ledger) == constraints(described)
    assert indexes(ledger) == indexes(described)


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [("sync_jobs", "status", JobStatus), ("sync_runs", "state", RunState), ("sync_runs", "kind", Kind)],
)
def test_the_states_are_those_of_the_constraints(
    table: str, column: str, values: type[StrEnum], ledger: Ledger
) -> None:
    definition = ledger.value(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conname = %s AND conrelid = %s::regclass",
        f"{table}_{column}_check",
        table,
    )
    assert set(re.findall(r"'(\w+)'", definition)) == {value.value for value in values}


def test_migrating_says_the_version(
    scheduler: Scheduler, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    outcome = scheduler("migrate")
    assert outcome.status == 0
    assert outcome.stdout == f"the tables are at version {newest_version()}\n"
    assert Ledger(empty_database_url).value(f"SELECT version_num FROM {VERSION_TABLE}") == newest_version()


def test_migrating_again_changes_nothing(scheduler: Scheduler, ledger: Ledger) -> None:
    before = constraints(ledger), indexes(ledger), ledger.everything()
    assert scheduler("migrate").status == 0
    assert (constraints(ledger), indexes(ledger), ledger.everything()) == before


def test_several_releases_may_migrate_at_once(
    environment: dict[str, str], empty_database_url: str, ledger: Ledger
) -> None:
    environment["DATABASE_URL"] = empty_database_url
    outcomes = run_herd(environment, 5, "worker_scheduler.cli:run", "migrate")
    assert [(outcome.status, outcome.errors) for outcome in outcomes] == [(0, [])] * 5
    assert indexes(Ledger(empty_database_url)) == indexes(ledger)


def test_other_migrations_of_the_application_are_not_touched(
    scheduler: Scheduler, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = Ledger(empty_database_url)
    application.execute(
        "CREATE TABLE alembic_version (version_num varchar(32))",
        "INSERT INTO alembic_version VALUES ('of-the-application')",
    )
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert scheduler("migrate").status == 0
    assert application.value("SELECT version_num FROM alembic_version") == "of-the-application"


def test_a_migration_that_fails_leaves_nothing(
    scheduler: Scheduler, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = Ledger(empty_database_url)
    application.execute("CREATE TABLE sync_jobs (job_id bigint)")
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    outcome = scheduler("migrate")
    assert outcome.status == 2
    assert any("sync_jobs has no column user_id: add it" in line for line in outcome.errors)
    assert any("sync_jobs has job_id as int8" in line for line in outcome.errors)
    assert application.value("SELECT to_regclass('sync_runs')") is None


def test_a_column_that_has_one_of_our_names_is_refused(
    scheduler: Scheduler, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    OlderScheduler("run_id", more_columns={"run_id": ("bigint", "7")}).leave_behind(empty_database_url, 2)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    outcome = scheduler("migrate")
    assert outcome.status == 2
    assert "sync_jobs has a column run_id of its own" in outcome.error
    assert Ledger(empty_database_url).value("SELECT sum(run_id) FROM sync_jobs") == 42


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_stored_time_has_a_time_zone(table: Table, ledger: Ledger) -> None:
    types = ledger.rows(
        "SELECT data_type FROM information_schema.columns"
        " WHERE table_name = %s AND data_type LIKE 'timestamp%%'",
        table.name,
    )
    assert {row["data_type"] for row in types} <= {"timestamp with time zone"}
