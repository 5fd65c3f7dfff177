"""Takes over a `sync_jobs` table that an older scheduler left; changes no row of it.

It adds our columns, and widens what would refuse our rows: a NOT NULL of a column that we do not
fill, a CHECK or an enum type that does not know all our states. Every one of these changes only the
catalogue, so none rewrites the table.
"""

from __future__ import annotations

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


def adopt_sync_jobs(connection: Connection) -> None:
    """Makes the older table fit for our rows. Raises ConfigurationError where it cannot be."""
    columns = _columns(connection)
    _refuse_what_cannot_fit(connection, columns)
    _index_job_id(connection)
    for name, (_, required, has_default) in columns.items():
        if required and not has_default and name not in _ALWAYS_FILLED:
            connection.execute(text(f'ALTER TABLE sync_jobs ALTER COLUMN "{name}" DROP NOT NULL'))
            log.warning("sync_jobs adopted: NOT NULL dropped, we do not fill it", column=name)
    _widen_texts(connection)
    connection.execute(text(_OURS))
    if columns["status"][0] in _STRINGS:
        _replace_status_checks(connection)


def _columns(connection: Connection) -> dict[str, tuple[str, bool, bool]]:
    rows = connection.execute(
        text(
            "SELECT a.attname, t.typname, a.attnotnull,"
            " a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> ''"
            " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE a.attrelid = 'sync_jobs'::regclass AND a.attnum > 0 AND NOT a.attisdropped"
        )
    )
    return {name: (kind, required, default) for name, kind, required, default in rows}


def _refuse_what_cannot_fit(connection: Connection, columns: dict[str, tuple[str, bool, bool]]) -> None:
    missing = [c.name for c in sync_jobs.columns if c.name in _needed() and c.name not in columns]
    faults = [f"the older table sync_jobs has no column {name}: add it" for name in missing]
    faults += [
        f"the older table sync_jobs has {name} as {columns[name][0]}: make it"
        f" {' or '.join(sorted(accepted))}, or rename the table and let migrate make a new one"
        for name, accepted in _ACCEPTED_TYPES.items()
        if name in columns and columns[name][0] not in accepted
    ]
    if "status" in columns and not _is_text_or_enum(connection):
        faults.append(f"the older table sync_jobs has status as {columns['status'][0]}: make it text")
    faults += [
        f"the older table sync_jobs has a column {name} of its own, which is ours from now on: rename it"
        for name in columns
        if name in sync_jobs.columns and name not in _needed()
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
    """varchar(n) → text for what we fill: our keys have up to 200 characters, our errors 500."""
    limited = connection.execute(
        text(
            "SELECT quote_ident(attname) FROM pg_attribute"
            " WHERE attrelid = 'sync_jobs'::regclass AND atttypid = 'varchar'::regtype"
            " AND atttypmod > 0 AND attname = ANY(:names)"
        ),
        {"names": ["github_login", "error_message", "triggered_by", "partition_key"]},
    ).scalars()
    for name in list(limited):
        connection.execute(text(f"ALTER TABLE sync_jobs ALTER COLUMN {name} TYPE text"))


def add_missing_states(connection: Connection) -> None:
    """Where `status` is an enum, gives it the states that it lacks; does nothing else.

    In a transaction of its own, before the migration: Postgres lets nobody use a value of an enum
    before its ADD VALUE is committed, and our indexes name PENDING and RUNNING.
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
        connection.execute(
            text(f"ALTER TYPE {_status_type(connection)} ADD VALUE IF NOT EXISTS '{status}'")
        )


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
        connection.execute(text(f"ALTER TABLE sync_jobs DROP CONSTRAINT {name}"))
    states = ", ".join(f"'{status}'" for status in JobStatus)
    connection.execute(
        text(
            "ALTER TABLE sync_jobs ADD CONSTRAINT sync_jobs_status_check"
            f" CHECK (run_id IS NULL OR status IN ({states})) NOT VALID"
        )
    )
