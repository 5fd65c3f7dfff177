"""Adopts a `sync_jobs` table that an older scheduler left, without changing a row of it.

It adds the new columns and removes what would refuse new rows: a NOT NULL on a column that new rows leave
empty, a CHECK or an enum type that lacks a state. Each of these changes only the catalogue, so none
rewrites the table. Other obstacles are found by `ledger/trial.py`, which inserts jobs on trial. This
module belongs to revision 0003 and is frozen like it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from worker_scheduler import logs
from worker_scheduler.errors import ConfigurationError

log = logs.get_logger(__name__)

_STATES = ("PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED")
_STRINGS = {"text", "varchar", "citext"}
_TIMES = {"timestamptz", "timestamp"}
_INTEGERS = {"int2", "int4", "int8"}
# The columns that the older table must have, in the order in which a fault names them. None: text or an
# enum, which `_is_text_or_enum` checks.
_ACCEPTED_TYPES: dict[str, set[str] | None] = {
    "job_id": {"uuid"},
    "user_id": {"uuid"},
    "github_login": _STRINGS,
    "status": None,
    "error_message": _STRINGS,
    "backfill_days": _INTEGERS,
    "triggered_by": _STRINGS,
    "partition_key": _STRINGS,
    "created_at": _TIMES,
    "started_at": _TIMES,
    "completed_at": _TIMES,
}
_ALWAYS_FILLED = {"job_id", "user_id", "status", "triggered_by", "partition_key", "created_at"}
# By this revision, and by later ones: an older table may not have a column of that name.
_ADDED = (
    *("run_id", "attempt", "leased_until", "not_before", "republished_in"),
    *("republished_at", "attempts_allowed", "interruptions"),
)
_ADD_COLUMNS = """
ALTER TABLE sync_jobs
    ADD COLUMN run_id uuid,
    ADD COLUMN attempt smallint NOT NULL DEFAULT 0,
    ADD COLUMN leased_until timestamptz,
    ADD COLUMN not_before timestamptz,
    ADD COLUMN republished_in uuid
"""


# Indexes, and constraints with an index, that the migration makes under a name of its own.
_MADE = (
    *("sync_jobs_one_job_per_user", "sync_jobs_open", "sync_jobs_running", "sync_jobs_delayed"),
    *("sync_jobs_republished", "sync_jobs_partition", "sync_jobs_job_id", "sync_batches_unsent"),
    "sync_runs_partition_key_key",
)


def older_sync_jobs_exist(connection: Connection) -> bool:
    """Whether a table `sync_jobs` exists. Before the first migration, only an older scheduler's can."""
    return bool(connection.execute(text("SELECT to_regclass('sync_jobs') IS NOT NULL")).scalar_one())


@dataclass(frozen=True)
class _Column:
    """A column of the older table. required: NOT NULL without a default."""

    name: str
    quoted: str
    type: str
    required: bool
    in_key: bool


def free_our_names(connection: Connection) -> None:
    """Renames what the older table has under a name that the migration needs, to `…_older`."""
    taken = connection.execute(
        text(
            "SELECT 'INDEX' AS kind, c.relname AS name FROM pg_index i"
            " JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = 'sync_jobs'::regclass AND c.relname = ANY(:made)"
            " UNION ALL SELECT 'CONSTRAINT', c.conname FROM pg_constraint c"
            " WHERE c.conrelid = 'sync_jobs'::regclass AND c.conname = 'sync_jobs_status_check'"
        ),
        {"made": list(_MADE)},
    ).all()
    for kind, name in taken:
        what = "INDEX" if kind == "INDEX" else "TABLE sync_jobs"
        renamed = f"{name} RENAME" if kind == "INDEX" else f"RENAME CONSTRAINT {name}"
        connection.execute(text(f"ALTER {what} {renamed} TO {name}_older"))
        log.warning("sync_jobs adopted: renamed what had a name that the scheduler needs", name=name)


def adopt_sync_jobs(connection: Connection) -> None:
    """Makes the older table accept new rows. Raises ConfigurationError if it cannot."""
    refuse_what_cannot_fit(connection)
    _index_job_id(connection)
    for column in _columns(connection):
        if column.required and column.name not in _ALWAYS_FILLED:
            _change(connection, f"ALTER TABLE sync_jobs ALTER COLUMN {column.quoted} DROP NOT NULL")
            log.warning(
                "sync_jobs adopted: dropped a NOT NULL, new rows leave the column empty", column=column.name
            )
    _widen_texts(connection)
    connection.execute(text(_ADD_COLUMNS))
    _replace_status_checks(connection)
    log.info("sync_jobs is not divided by months: an older scheduler created it")


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
    """Raises ConfigurationError with one fault per column that is missing or cannot be adopted."""
    columns = {column.name: column for column in _columns(connection)}
    faults = [
        f"the older table sync_jobs has no column {name}: add it"
        for name in _ACCEPTED_TYPES
        if name not in columns
    ]
    faults += [
        f"the older table sync_jobs has {name} as {columns[name].type}: make it"
        f" {' or '.join(sorted(accepted))}, or rename the table and let migrate create a new one"
        for name, accepted in _ACCEPTED_TYPES.items()
        if accepted is not None and name in columns and columns[name].type not in accepted
    ]
    if "status" in columns and not _is_text_or_enum(connection):
        faults.append(f"the older table sync_jobs has status as {columns['status'].type}: make it text")
    faults += [
        f"the older table sync_jobs has its own column {name}, a name that this scheduler needs: rename it"
        for name in columns
        if name in _ADDED
    ]
    faults += [
        f"the older table sync_jobs has the column {column.name} in its primary key, and new rows do not"
        " fill it: give it a default, or take it out of the key"
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


def _index_job_id(connection: Connection) -> None:
    """Creates an index on job_id if there is none, since workers claim jobs by it.

    It is not unique: the older table may repeat a job_id.
    """
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
    """Turns varchar(n) into text where new values may be longer: keys have up to 200 characters, errors
    500, states 9.
    """
    limited = connection.execute(
        text(
            "SELECT quote_ident(attname) FROM pg_attribute"
            " WHERE attrelid = 'sync_jobs'::regclass AND atttypid = 'varchar'::regtype"
            " AND atttypmod > 0"
            " AND (attname = ANY(:names) OR attname = 'status' AND atttypmod - 4 < :longest_status)"
        ),
        {
            "longest_status": max(map(len, _STATES)),
            "names": ["github_login", "error_message", "triggered_by", "partition_key"],
        },
    ).scalars()
    for name in list(limited):
        _change(connection, f"ALTER TABLE sync_jobs ALTER COLUMN {name} TYPE text")


def add_missing_states(connection: Connection) -> None:
    """If `status` is an enum, adds the states that it lacks.

    Needs a transaction of its own, before the migration: a new enum value can be used only after its ADD
    VALUE is committed, and the indexes name PENDING and RUNNING. So the enum keeps the new values even if
    the migration is refused afterwards, which does no harm.
    """
    labels = set(
        connection.execute(
            text(
                "SELECT e.enumlabel FROM pg_enum e JOIN pg_attribute a ON a.atttypid = e.enumtypid"
                " WHERE a.attrelid = to_regclass('sync_jobs') AND a.attname = 'status'"
            )
        ).scalars()
    )
    missing = [status for status in _STATES if labels and status not in labels]
    for status in missing:
        _change(connection, f"ALTER TYPE {_status_type(connection)} ADD VALUE IF NOT EXISTS '{status}'")


def _status_type(connection: Connection) -> str:
    """The type of `status` as SQL, with schema and quotes."""
    return str(
        connection.execute(
            text(
                "SELECT format_type(atttypid, NULL) FROM pg_attribute"
                " WHERE attrelid = 'sync_jobs'::regclass AND attname = 'status'"
            )
        ).scalar_one()
    )


def _replace_status_checks(connection: Connection) -> None:
    """Replaces every CHECK on status by one that is NOT VALID, so that older rows keep their states."""
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
    states = ", ".join(f"'{status}'" for status in _STATES)
    connection.execute(
        text(
            "ALTER TABLE sync_jobs ADD CONSTRAINT sync_jobs_status_check"
            f" CHECK (run_id IS NULL OR status IN ({states})) NOT VALID"
        )
    )


def _change(connection: Connection, statement: str) -> None:
    """Executes a statement that contains names of the older table, where a colon marks no parameter."""
    connection.execute(text(statement.replace(":", r"\:")))
