"""Takes over a `sync_jobs` table that an older scheduler left; changes no row of it.

It adds our columns, and widens what would refuse our rows: a NOT NULL of a column that we do not
fill, a CHECK or an enum type that does not know all our states. Every one of these changes only the
catalogue, so none rewrites the table. What else may refuse our rows, `trial.py` finds out.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, text

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger.tables import JobStatus, sync_jobs

log = structlog.get_logger(__name__)

_STRINGS = {"text", "varchar", "citext"}
_TIMES = {"timestamptz", "timestamp"}
_INTEGERS = {"int2", "int4", "int8"}
_ACCEPTED_TYPES = {
    "job_id": {"uuid"},
    "user_id": {"uuid"},
    "github_login": _STRINGS,
    "error_message": _STRINGS,
    "backfill_days": _INTEGERS,
    "triggered_by": _STRINGS,
    "partition_key": _STRINGS,
    "created_at": _TIMES,
    "started_at": _TIMES,
    "completed_at": _TIMES,
}
_ALWAYS_FILLED = {"job_id", "user_id", "status", "triggered_by", "partition_key", "created_at"}
_OURS = """
ALTER TABLE sync_jobs
    ADD COLUMN run_id uuid,
    ADD COLUMN attempt smallint NOT NULL DEFAULT 0,
    ADD COLUMN leased_until timestamptz,
    ADD COLUMN not_before timestamptz
"""


def older_sync_jobs_exist(connection: Connection) -> bool:
    """Whether there is a table `sync_jobs` that no migration of ours has made."""
    return bool(connection.execute(text("SELECT to_regclass('sync_jobs') IS NOT NULL")).scalar_one())


@dataclass(frozen=True)
class _Column:
    """A column of the older table. required: NOT NULL, and without a default."""

    name: str
    quoted: str
    type: str
    required: bool
    in_key: bool


def adopt_sync_jobs(connection: Connection) -> None:
    """Makes the older table fit for our rows. Raises ConfigurationError where it cannot be."""
    refuse_what_cannot_fit(connection)
    _index_job_id(connection)
    for column in _columns(connection):
        if column.required and column.name not in _ALWAYS_FILLED:
            _change(connection, f"ALTER TABLE sync_jobs ALTER COLUMN {column.quoted} DROP NOT NULL")
            log.warning("sync_jobs adopted: NOT NULL dropped, we do not fill it", column=column.name)
    _widen_texts(connection)
    connection.execute(text(_OURS))
    _replace_status_checks(connection)


def _columns(connection: Connection) -> list[_Column]:
    rows = connection.execute(
        text(
            "SELECT a.attname AS name, quote_ident(a.attname) AS quoted, t.typname AS type,"
            " a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS required,"
            " EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary"
            " AND a.attnum = ANY(i.indkey)) AS in_key"
            " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE a.attrelid = 'sync_jobs'::regclass AND a.attnum > 0 AND NOT a.attisdropped"
            " ORDER BY a.attnum"
        )
    )
    return [_Column(**row._mapping) for row in rows]


def refuse_what_cannot_fit(connection: Connection) -> None:
    """Raises ConfigurationError naming each column that is missing or that nothing of ours would fit."""
    columns = {column.name: column for column in _columns(connection)}
    missing = [c.name for c in sync_jobs.columns if c.name in _needed() and c.name not in columns]
    faults = [f"the older table sync_jobs has no column {name}: add it" for name in missing]
    faults += [
        f"the older table sync_jobs has {name} as {columns[name].type}: make it"
        f" {' or '.join(sorted(accepted))}, or rename the table and let migrate make a new one"
        for name, accepted in _ACCEPTED_TYPES.items()
        if name in columns and columns[name].type not in accepted
    ]
    if "status" in columns and not _is_text_or_enum(connection):
        faults.append(f"the older table sync_jobs has status as {columns['status'].type}: make it text")
    faults += [
        f"the older table sync_jobs has a column {name} of its own, which is ours from now on: rename it"
        for name in columns
        if name in sync_jobs.columns and name not in _needed()
    ]
    faults += [
        f"the older table sync_jobs has the column {column.name} in its primary key, and we do not fill it:"
        " give it a default, or take it out of the key"
        for column in columns.values()
        if column.required and column.in_key and column.name not in _ALWAYS_FILLED
    ]
    if faults:
        raise ConfigurationError(faults)


def _is_text_or_enum(connection: Connection) -> bool:
    kind = connection.execute(
        text(
            "SELECT t.typcategory FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE a.attrelid = 'sync_jobs'::regclass AND a.attname = 'status'"
        )
    ).scalar_one()
    return kind in {"S", "E"}


def _needed() -> set[str]:
    return set(_ACCEPTED_TYPES) | {"status"}


def _index_job_id(connection: Connection) -> None:
    """Claims go by job_id; an older table may have had no key on it, or even repeat it."""
    indexed = connection.execute(
        text(
            "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a"
            " ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
            " WHERE i.indrelid = 'sync_jobs'::regclass AND a.attname = 'job_id'"
            " AND i.indpred IS NULL AND i.indisvalid)"
        )
    ).scalar_one()
    if not indexed:
        connection.execute(text("CREATE INDEX sync_jobs_job_id ON sync_jobs (job_id)"))


def _widen_texts(connection: Connection) -> None:
    """varchar(n) → text where ours may not fit: keys have up to 200 characters, errors 500, states 9."""
    limited = connection.execute(
        text(
            "SELECT quote_ident(attname) FROM pg_attribute"
            " WHERE attrelid = 'sync_jobs'::regclass AND atttypid = 'varchar'::regtype"
            " AND atttypmod > 0"
            " AND (attname = ANY(:names) OR attname = 'status' AND atttypmod - 4 < :longest_status)"
        ),
        {
            "longest_status": max(map(len, JobStatus)),
            "names": ["github_login", "error_message", "triggered_by", "partition_key"],
        },
    ).scalars()
    for name in list(limited):
        _change(connection, f"ALTER TABLE sync_jobs ALTER COLUMN {name} TYPE text")


def add_missing_states(connection: Connection) -> None:
    """Where `status` is an enum, gives it the states that it lacks; does nothing else.

    In a transaction of its own, before the migration: Postgres lets nobody use a value of an enum
    before its ADD VALUE is committed, and our indexes name PENDING and RUNNING. So an enum keeps them
    where the migration is refused after that; they are in nobody's way.
    """
    labels = set(
        connection.execute(
            text(
                "SELECT e.enumlabel FROM pg_enum e JOIN pg_attribute a ON a.atttypid = e.enumtypid"
                " WHERE a.attrelid = to_regclass('sync_jobs') AND a.attname = 'status'"
            )
        ).scalars()
    )
    missing = [status for status in JobStatus if labels and status not in labels]
    for status in missing:
        _change(connection, f"ALTER TYPE {_status_type(connection)} ADD VALUE IF NOT EXISTS '{status}'")


def _status_type(connection: Connection) -> str:
    """The type of `status` as SQL, schema and quotes included."""
    return str(
        connection.execute(
            text(
                "SELECT format_type(atttypid, NULL) FROM pg_attribute"
                " WHERE attrelid = 'sync_jobs'::regclass AND attname = 'status'"
            )
        ).scalar_one()
    )


def _replace_status_checks(connection: Connection) -> None:
    """Drops CHECKs on status and adds ours; NOT VALID, so that older rows keep states of their own."""
    names = connection.execute(
        text(
            "SELECT quote_ident(c.conname) FROM pg_constraint c"
            " WHERE c.conrelid = 'sync_jobs'::regclass AND c.contype = 'c'"
            " AND c.conkey = ARRAY[(SELECT attnum FROM pg_attribute"
            " WHERE attrelid = c.conrelid AND attname = 'status')]"
        )
    ).scalars()
    for name in list(names):
        _change(connection, f"ALTER TABLE sync_jobs DROP CONSTRAINT {name}")
    states = ", ".join(f"'{status}'" for status in JobStatus)
    connection.execute(
        text(
            "ALTER TABLE sync_jobs ADD CONSTRAINT sync_jobs_status_check"
            f" CHECK (run_id IS NULL OR status IN ({states})) NOT VALID"
        )
    )


def _change(connection: Connection, statement: str) -> None:
    """Executes a statement with names of the older scheduler's in it: a colon in one is no parameter."""
    connection.execute(text(statement.replace(":", r"\:")))
