"""Brings the tables up to date, and says whether they are; the tables themselves are in tables.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger.database import Database, is_for_lack_of_a_right, is_outage, reason_of
from worker_scheduler.ledger.migrations.adoption import (
    add_missing_states,
    older_sync_jobs_exist,
    refuse_what_cannot_fit,
)
from worker_scheduler.ledger.migrations.trial import REMEDY, try_jobs

VERSION_TABLE = "worker_scheduler_version"
# Any constant of our own: two releases that migrate at once go one after the other.
_MIGRATION_LOCK = 0x7761766500


def upgrade(database_url: str) -> str:
    """Migrates to the newest version; returns that version.

    In one transaction, but for the states that an older scheduler's enum lacks: `adoption.py` says why.

    Raises StoreUnavailable, and ConfigurationError where what is there already stands in the way.
    """
    database = Database(database_url)
    try:
        with _alone(database) as connection:
            if _is_to_be_adopted(connection):
                refuse_what_cannot_fit(connection)
                add_missing_states(connection)
        with _alone(database) as connection:
            adopting = _is_to_be_adopted(connection)
            command.upgrade(_config(connection), "head")
            if adopting:
                try_jobs(connection)
    finally:
        database.dispose()
    return newest_version()


@cache
def newest_version() -> str:
    """The schema version that this code works with."""
    return ScriptDirectory.from_config(_config(None)).get_current_head() or ""


def require_current(connection: Connection) -> None:
    """Raises ConfigurationError where the tables are not those of this version."""
    present = version(connection)
    if present is None:
        raise ConfigurationError(["the tables are not there: run `scheduler migrate`"])
    if present == newest_version():
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if present not in known:
        raise ConfigurationError(
            [f"the tables have version {present}, newer than this code: deploy the newer code"]
        )
    raise ConfigurationError(
        [f"the tables have version {present}, this code needs {newest_version()}: run `scheduler migrate`"]
    )


def version(connection: Connection) -> str | None:
    """The schema version of the database; None where it was never migrated."""
    exists = connection.execute(text("SELECT to_regclass(:table)"), {"table": VERSION_TABLE})
    if exists.scalar_one() is None:
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return found.scalar_one_or_none()


def _is_to_be_adopted(connection: Connection) -> bool:
    return version(connection) is None and older_sync_jobs_exist(connection)


@contextmanager
def _alone(database: Database) -> Iterator[Connection]:
    """A transaction in which nobody else migrates."""
    with database.transaction() as connection:
        # Ends with the transaction, so it is safe behind PgBouncer.
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _MIGRATION_LOCK})
        with _refusals_are_faults():
            yield connection


@contextmanager
def _refusals_are_faults() -> Iterator[None]:
    """What is there already may be anything: what Postgres will not do with it, the operator can mend."""
    try:
        yield
    except DBAPIError as error:
        if is_outage(error) or is_for_lack_of_a_right(error):
            raise  # as everywhere
        raise ConfigurationError(
            [f"the tables cannot be brought up to date: {reason_of(error)}: {REMEDY}"]
        ) from error


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", "worker_scheduler:ledger/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config
