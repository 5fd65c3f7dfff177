"""Brings the tables up to date and checks that they are; `tables.py` describes the tables.

Alembic is imported by the functions that need it: it takes 70 ms, and most commands only check the version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from worker_scheduler.errors import ConfigurationError, StoreUnavailable
from worker_scheduler.ledger import advisory_locks, names
from worker_scheduler.ledger.database import (
    Database,
    is_held_up,
    is_missing_privilege,
    is_outage,
    postgres_reason,
)
from worker_scheduler.ledger.migrations.adoption import (
    add_missing_states,
    older_sync_jobs_exist,
    refuse_what_cannot_fit,
)
from worker_scheduler.ledger.trial import REMEDY, try_jobs

if TYPE_CHECKING:
    from alembic.config import Config

NEWEST_VERSION = "0006"
"""The schema version that this code works with: the last migration's."""
VERSION_TABLE = names.VERSION_TABLE

_OWN_REMEDY = "change or drop what Postgres names, and run `scheduler migrate` again"

_LONGEST_WAIT = "1s"
"""Claims queue behind a migration that waits for a lock, so it gives up and lets them pass."""
_BETWEEN_TRIES_SECONDS = 2.0
_TRIES = 20
_LONGEST_WAIT_FOR_ANOTHER = "60s"


class _HeldUp(Exception):
    """Another transaction used a table for longer than a migration may wait. Nothing was changed."""


def upgrade(database: Database, pause: Callable[[float], None] = time.sleep) -> str:
    """Migrates to the newest version and returns it.

    Everything happens in one transaction, except that an older scheduler's enum gets its missing states in
    a transaction before it (`adoption.add_missing_states` says why). While other transactions use the
    tables it tries again and again, for a minute at most.

    Raises StoreUnavailable, and ConfigurationError if the existing tables cannot be migrated.
    """
    for attempt in range(_TRIES):
        if attempt:
            pause(_BETWEEN_TRIES_SECONDS)
        try:
            _upgrade(database)
        except _HeldUp:
            continue
        database.dispose()  # connections that began before the tables existed
        return NEWEST_VERSION
    raise StoreUnavailable(
        f"the tables were not changed: in each of {_TRIES} tries another transaction used them for over"
        f" {_LONGEST_WAIT}: end it (pg_stat_activity shows it), or wait for it, and run `scheduler migrate`"
        " again"
    )


def _upgrade(database: Database) -> None:
    from alembic import command  # noqa: PLC0415

    with _alone(database) as connection:
        _refuse_unknown_version(version(connection))
        if _is_to_be_adopted(connection):
            refuse_what_cannot_fit(connection)
            add_missing_states(connection)
    with _alone(database) as connection:
        adopting = _is_to_be_adopted(connection)
        command.upgrade(_config(connection), "head")
        if adopting:
            try_jobs(connection)


def require_current(connection: Connection) -> None:
    """Raises ConfigurationError unless the tables have the version that this code works with."""
    present = version(connection)
    if present is None:
        raise ConfigurationError(["the tables do not exist: run `scheduler migrate`"])
    _refuse_unknown_version(present)
    if present != NEWEST_VERSION:
        raise ConfigurationError(
            [
                f"the tables have version {present}, this code needs {NEWEST_VERSION}:"
                " run `scheduler migrate`"
            ]
        )


def version(connection: Connection) -> str | None:
    """The schema version of the database; None if it was never migrated."""
    exists = connection.execute(text(f"SELECT to_regclass('{VERSION_TABLE}')"))
    if exists.scalar_one() is None:
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return found.scalar_one_or_none()


def _refuse_unknown_version(present: str | None) -> None:
    """Raises ConfigurationError if this code has no migration of that version; versions sort as text."""
    if present is None or present == NEWEST_VERSION:
        return
    known = _known_versions()
    if present in known:
        return
    if present < (oldest := min(known)):
        raise ConfigurationError(
            [
                f"the tables have version {present}, and the oldest that this code can migrate is {oldest}:"
                " migrate them with earlier code first"
            ]
        )
    raise ConfigurationError(
        [f"the tables have version {present}, newer than this code: deploy the newer code"]
    )


def _is_to_be_adopted(connection: Connection) -> bool:
    return version(connection) is None and older_sync_jobs_exist(connection)


@contextmanager
def _alone(database: Database) -> Iterator[Connection]:
    """A transaction during which no other process migrates. Names mean the tables of the ledger's schema.

    Raises _HeldUp if another transaction uses a table for too long.
    """
    with database.transaction() as connection:
        _wait_for_other_migrations(connection)
        _refuse_second_place(connection)
        names.search_in_schema(connection)
        connection.execute(_WAIT_AT_MOST, {"duration": _LONGEST_WAIT})
        remedy = REMEDY if _is_to_be_adopted(connection) else _OWN_REMEDY
        with _refusals_as_faults(remedy), names.as_written(connection):
            yield connection


_WAIT_AT_MOST = text("SELECT set_config('lock_timeout', :duration, true)")


def _wait_for_other_migrations(connection: Connection) -> None:
    connection.execute(_WAIT_AT_MOST, {"duration": _LONGEST_WAIT_FOR_ANOTHER})
    try:
        advisory_locks.hold(connection, advisory_locks.SCHEMA_CHANGE)
    except DBAPIError as error:
        if not is_held_up(error):
            raise
        raise StoreUnavailable(
            f"another process has been changing the tables for {_LONGEST_WAIT_FOR_ANOTHER}: wait for its"
            " end (pg_stat_activity shows it), and run `scheduler migrate` again"
        ) from error


# As parameters, names are looked up by search_path.
_PRESENT_AND_NEXT = text(
    """
    SELECT (SELECT quote_ident(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid = to_regclass(:table)) AS present,
        quote_ident(nullif(current_schema(), 'pg_catalog')) AS next
    """
)


def _refuse_second_place(connection: Connection) -> None:
    """Raises ConfigurationError if there are tables, but in another schema than search_path gives new ones:
    which of the two the operator means cannot be known.
    """
    schema = names.schema_of(connection)
    table = "sync_jobs" if schema is None else VERSION_TABLE
    found = connection.execute(_PRESENT_AND_NEXT, {"table": table}).one()
    if schema is None and found.present not in {None, found.next}:  # an older scheduler's
        schema = found.present
    elif schema is None or found.present is not None or found.next is None:
        return
    raise ConfigurationError(
        [
            f"the table {table} is in the schema {schema}, and search_path would put new tables into"
            f" {found.next}: add ?options=-csearch_path%3DSCHEMA to DATABASE_URL, with the schema you mean"
        ]
    )


@contextmanager
def _refusals_as_faults(remedy: str) -> Iterator[None]:
    """Turns what Postgres refuses into ConfigurationError: the cause is in the existing tables, which the
    operator can change.
    """
    try:
        yield
    except DBAPIError as error:
        if is_held_up(error):
            raise _HeldUp from error
        if is_outage(error) or is_missing_privilege(error):
            raise  # Database.transaction reports these as it does for every statement
        raise ConfigurationError(
            [f"the tables cannot be brought up to date: {postgres_reason(error)}: {remedy}"]
        ) from error


def _known_versions() -> list[str]:
    """The version after each migration."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()]


def _config(connection: Connection | None) -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "worker_scheduler:ledger/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config
