"""The migrations create the tables that `tables.py` describes, once, however many processes run them."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Table, create_engine

from tests.support.command_line import Outcome
from tests.support.herd import run_herd
from tests.support.ledger import Ledger, Row
from tests.support.older_scheduler import OlderScheduler
from worker_scheduler.config.settings import Settings
from worker_scheduler.ledger import advisory_locks, months, schema
from worker_scheduler.ledger.all_tables import metadata
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.schema import NEWEST_VERSION, VERSION_TABLE
from worker_scheduler.ledger.tables import JobStatus, Kind, RunState

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
    assert outcome.stdout == f"the tables are at version {NEWEST_VERSION}\n"
    assert Ledger(empty_database_url).value(f"SELECT version_num FROM {VERSION_TABLE}") == NEWEST_VERSION


def test_migrating_again_changes_nothing(scheduler: Scheduler, ledger: Ledger) -> None:
    before = constraints(ledger), indexes(ledger), ledger.everything()
    assert scheduler("migrate").status == 0
    assert (constraints(ledger), indexes(ledger), ledger.everything()) == before


@pytest.mark.slow
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
    assert "sync_jobs has its own column run_id" in outcome.error
    assert Ledger(empty_database_url).value("SELECT sum(run_id) FROM sync_jobs") == 42


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_stored_time_has_a_time_zone(table: Table, ledger: Ledger) -> None:
    types = ledger.rows(
        "SELECT data_type FROM information_schema.columns"
        " WHERE table_name = %s AND data_type LIKE 'timestamp%%'",
        table.name,
    )
    assert {row["data_type"] for row in types} <= {"timestamp with time zone"}


# --- an earlier ledger ------------------------------------------------------------------------------

DUMP = Path(__file__).with_name("version_0003.sql")
A_TIME_IN_THE_DUMP = datetime(2026, 11, 27, tzinfo=UTC)
# Of all months only the one that is in the dump: which others exist depends on the day.
COMPARED = "n.relname ~ '^(sync|worker)' AND (n.relname !~ '_[0-9]{4}_[0-9]{2}' OR n.relname ~ '_2026_11')"
STRUCTURE = rf"""
SELECT 'table' AS what, n.relname AS name, concat_ws(' ', n.relkind, pg_get_expr(n.relpartbound, n.oid))
        AS definition, 0 AS place
    FROM pg_class n WHERE {COMPARED}
UNION ALL SELECT 'column', n.relname || '.' || attname,
        concat_ws(' ', atttypid::regtype, atttypmod, attnotnull, pg_get_expr(adbin, adrelid)),
        row_number() OVER (PARTITION BY n.oid ORDER BY attnum)
    FROM pg_class n JOIN pg_attribute ON attrelid = n.oid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE {COMPARED} AND n.relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'constraint', n.relname || '.' || conname, pg_get_constraintdef(c.oid), 0
    FROM pg_class n JOIN pg_constraint c ON conrelid = n.oid WHERE {COMPARED}
UNION ALL SELECT 'index', n.relname, pg_get_indexdef(n.oid), 0
    FROM pg_class n WHERE {COMPARED} AND n.relkind IN ('i', 'I')
UNION ALL SELECT 'part', n.relname, inhparent::regclass::text, 0
    FROM pg_class n JOIN pg_inherits ON inhrelid = n.oid WHERE {COMPARED}
UNION ALL SELECT 'function', oid::regprocedure::text,
        concat_ws(' ', regexp_replace(prosrc, '\s*--[^\n]*', '', 'g'), prosecdef, proconfig, proacl), 0
    FROM pg_proc WHERE proname LIKE 'sync%'
ORDER BY 1, 2, 3
"""


@pytest.fixture
def earlier(empty_database_url: str) -> Ledger:
    """The ledger of the dump."""
    restored = Ledger(empty_database_url)
    restored.execute(DUMP.read_text())
    return restored


@pytest.fixture
def database(empty_database_url: str) -> Iterator[Database]:
    database = Database(sqlalchemy_url(empty_database_url))
    yield database
    database.dispose()


SELECTED = "SELECT run_id, user_id FROM sync_selected_users ORDER BY 1, 2"


def rows_of_all_tables(ledger: Ledger) -> list[dict[str, Any]]:
    return [
        row["t"]
        for table in ("sync_runs", "sync_batches", "sync_jobs", "sync_locks", "sync_origin")
        for row in ledger.rows(f"SELECT to_jsonb(t) AS t FROM {table} t ORDER BY t::text")
    ]


def test_an_earlier_ledger_is_upgraded_to_the_tables_of_a_new_one(
    earlier: Ledger, database: Database, ledger: Ledger
) -> None:
    before = rows_of_all_tables(earlier)
    assert len(before) == 4 + 4 + 8 + 1 + 1
    assert schema.upgrade(database) == NEWEST_VERSION
    with database.autocommit() as connection:
        schema.require_current(connection)
    chosen = {row["run_id"]: row.pop("selected_user_ids") for row in before if "selected_user_ids" in row}
    after = {str(row): row for row in rows_of_all_tables(earlier)}
    for row in before:
        assert any(row.items() <= kept.items() for kept in after.values()), row
    assert len(after) == len(before)
    assert [(str(row["run_id"]), [str(row["user_id"])]) for row in earlier.rows(SELECTED)] == [
        (run_id, user_ids) for run_id, user_ids in chosen.items() if user_ids
    ]

    new = Database(sqlalchemy_url(ledger.url))
    with new.autocommit() as connection:
        months.ensure(connection, months.new_run_id(A_TIME_IN_THE_DUMP))
    new.dispose()
    assert earlier.rows(STRUCTURE) == ledger.rows(STRUCTURE)


def test_the_newest_version_is_that_of_the_last_migration() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).parent / "migrations"))
    assert scripts.get_current_head() == NEWEST_VERSION


@pytest.mark.parametrize(
    ("version", "words"),
    [("0001", "the oldest that this code can migrate is 0003"), ("9999", "newer than this code")],
)
@pytest.mark.parametrize("command", ["migrate", "daily"])
def test_a_version_that_this_code_does_not_know_is_refused_in_one_line(
    command: str,
    version: str,
    words: str,
    earlier: Ledger,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    earlier.execute(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'")
    before = rows_of_all_tables(earlier)
    monkeypatch.setenv("DATABASE_URL", earlier.url)
    outcome = scheduler(command)
    assert outcome.status == 2, outcome
    assert f"the tables have version {version}" in outcome.error and words in outcome.error
    assert rows_of_all_tables(earlier) == before


# --- advisory locks ---------------------------------------------------------------------------------


def test_each_number_has_one_meaning() -> None:
    numbers = [advisory_locks.SCHEMA_CHANGE, advisory_locks.PRUNE]
    defaults = [
        Settings.model_fields[name].default
        for name in ("scheduler_daily_lock_id", "scheduler_backfill_lock_id")
    ]
    assert len({*numbers, *defaults}) == 4


def test_the_function_that_adds_a_month_takes_the_lock_of_migrations(ledger: Ledger) -> None:
    source = ledger.value("SELECT prosrc FROM pg_proc WHERE proname = 'sync_jobs_add_month'")
    (number,) = re.findall(r"pg_advisory_xact_lock\(x'([0-9a-f]+)'::bigint\)", source)
    assert int(number, 16) == advisory_locks.SCHEMA_CHANGE
