"""Brings the tables up to date, and says whether they are; the tables themselves are in tables.py."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.migrations.adoption import add_missing_states

VERSION_TABLE = "worker_scheduler_version"
# Any constant of our own: two releases that migrate at once go one after the other.
_MIGRATION_LOCK = 0x7761766500


def upgrade(database_url: str) -> str:
    """Migrates to the newest version; returns that version.

    In one transaction, but for the states that an older scheduler's enum lacks: `adoption.py` says why.

    Raises StoreUnavailable, and ConfigurationError where an older table cannot be adopted.
    """
    database = Database(database_url)
    try:
        with database.autocommit() as connection:
            if version(connection) is None:
                add_missing_states(connection)
        with database.transaction() as connection:
            # Ends with the transaction, so it is safe behind PgBouncer.
            connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _MIGRATION_LOCK})
            command.upgrade(_config(connection), "head")
    finally:
        database.dispose()
    return newest_version()


def newest_version() -> str:
    """The schema version that this code works with."""
    return ScriptDirectory.from_config(_config(None)).get_current_head() or ""


def require_current(connection: Connection) -> None:
    """Raises ConfigurationError where the tables are not those of this version."""
    present = version(connection)
    if present is None:
        raise ConfigurationError(["the tables are not there: run `scheduler migrate`"])
    known = {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if present not in known:
        raise ConfigurationError(
            [f"the tables have version {present}, newer than this code: deploy the newer code"]
        )
    if present != newest_version():
        raise ConfigurationError(
            [
                f"the tables have version {present}, this code needs {newest_version()}:"
                " run `scheduler migrate`"
            ]
        )


def version(connection: Connection) -> str | None:
    """The schema version of the database; None where it was never migrated."""
    exists = connection.execute(text("SELECT to_regclass(:table)"), {"table": VERSION_TABLE})
    if exists.scalar_one() is None:
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return found.scalar_one_or_none()


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", "worker_scheduler:ledger/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config
