"""What `scheduler check` asks Postgres: settings, rights and row level security. It only reads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger.control_tables import STOPPED_RUNS
from worker_scheduler.ledger.names import VERSION_TABLE
from worker_scheduler.ledger.users import UsersRelation

_ALL = "SELECT INSERT UPDATE DELETE"
RIGHTS = {
    VERSION_TABLE: "SELECT",
    "sync_origin": "SELECT UPDATE",
    "sync_runs": "SELECT INSERT UPDATE",
    "sync_batches": "SELECT INSERT UPDATE",
    "sync_jobs": "SELECT INSERT UPDATE",
    "sync_locks": _ALL,
    "sync_selected_users": _ALL,
    "sync_tasks": _ALL,
    "sync_probes": _ALL,
    "sync_suspects": _ALL,
    "sync_broker_epochs": _ALL,
    "sync_passes": _ALL,
    "sync_schedule": "SELECT UPDATE",
    "sync_requests": "SELECT INSERT",
    "sync_job_events": "SELECT INSERT",
    "sync_retries": "SELECT INSERT UPDATE",
    "sync_run_samples": "SELECT INSERT DELETE",
    "sync_queue_samples": "SELECT INSERT DELETE",
    STOPPED_RUNS: "SELECT",
}
"""What ticks and reconcile may do with each table; docs/security.md grants it."""

_FUNCTIONS = (
    "sync_jobs_add_month(text,uuid,uuid)",
    "sync_history_add_month(text,integer,integer)",
)

_COLUMNS_OF_WORKERS = (
    *("status", "error_message", "attempt", "started_at", "completed_at", "leased_until", "not_before"),
    *("attempts_allowed", "interruptions", "cancelled_at", "reason_class", "reason_fingerprint"),
)
"""What workers change in a job."""

_SHORT_MILLISECONDS = 10_000
_A_TIME = datetime(2001, 2, 3, 4, 5, 6, 7, UTC)
_A_TEXT = "ü"
_READ_BACK = text(
    "SELECT CAST(:time AS timestamptz), CAST(:text AS text), current_setting('server_encoding')"
)
_SETTINGS = text(
    """
    SELECT name, setting FROM pg_settings
    WHERE name = 'default_transaction_isolation' AND setting <> 'read committed'
        OR name IN ('statement_timeout', 'transaction_timeout')
            AND CAST(setting AS bigint) BETWEEN 1 AND :short
    ORDER BY name
    """
)
_PAIRS = ", ".join(
    f"(CAST('{table}' AS regclass), '{right}')"
    for table, rights in RIGHTS.items()
    for right in rights.split()
)
_MISSING_RIGHTS = text(
    f"""
    SELECT c.relname AS name, needed.action FROM (VALUES {_PAIRS}) AS needed(oid, action)
    JOIN pg_class c ON c.oid = needed.oid
    WHERE NOT CASE action WHEN 'DELETE' THEN has_table_privilege(c.oid, 'DELETE')
        ELSE has_any_column_privilege(c.oid, action) END
    UNION ALL SELECT proname, 'EXECUTE' FROM pg_proc
    WHERE oid IN ({", ".join(f"CAST('{function}' AS regprocedure)" for function in _FUNCTIONS)})
        AND NOT has_function_privilege(oid, 'EXECUTE')
    ORDER BY 1, 2
    """
)
# Of roles that may change jobs, since only such a role can be a worker's. The owner may do everything. In a
# statement, names of tables get their schema; the names that are shown are parameters.
_MISSING_RIGHTS_OF_WORKERS = text(
    f"""
    SELECT r.rolname AS role, needed.what FROM pg_roles r CROSS JOIN LATERAL (
        SELECT 'SELECT on ' || :stopped AS what
        WHERE NOT has_table_privilege(r.oid, '{STOPPED_RUNS}', 'SELECT')
        UNION ALL
        SELECT 'INSERT on ' || :events WHERE NOT has_table_privilege(r.oid, 'sync_job_events', 'INSERT')
        UNION ALL
        SELECT 'UPDATE (' || name || ') on ' || :jobs FROM unnest(CAST(:columns AS text[])) AS name
        WHERE NOT has_column_privilege(r.oid, 'sync_jobs', name, 'UPDATE')
    ) needed
    WHERE has_any_column_privilege(r.oid, 'sync_jobs', 'UPDATE') AND r.rolname !~ '^pg_'
    ORDER BY 1, 2
    """
)
_GUARDED = text(
    f"""
    SELECT DISTINCT c.relname FROM (VALUES {_PAIRS}) AS needed(oid, action) JOIN pg_class c USING (oid)
    WHERE row_security_active(c.oid) ORDER BY 1
    """
)
# The relation of users, and what it is made of if it is a view.
_USERS_BELOW = text(
    """
    WITH RECURSIVE below(oid) AS (
        SELECT CAST(to_regclass(:name) AS oid)
        UNION
        SELECT d.refobjid FROM below JOIN pg_rewrite r ON r.ev_class = below.oid
            JOIN pg_depend d ON d.classid = CAST('pg_rewrite' AS regclass) AND d.objid = r.oid
                AND d.refclassid = CAST('pg_class' AS regclass)
    )
    SELECT c.relname AS name, pg_relation_size(c.oid) > 0
        OR EXISTS (SELECT FROM pg_partition_tree(c.oid) t WHERE pg_relation_size(t.relid) > 0) AS has_rows
    FROM below JOIN pg_class c USING (oid)
    WHERE c.relrowsecurity AND (c.oid <> to_regclass(:name) OR row_security_active(c.oid))
    ORDER BY 2 DESC, 1 LIMIT 1
    """
)


@dataclass(frozen=True)
class Guard:
    """A table of users that shows this role only some of its rows. has_rows: whether it may have any."""

    name: str
    has_rows: bool


def encoding_of(connection: Connection) -> str:
    """The database's encoding. Raises ConfigurationError if a time or a text comes back as another one."""
    time, read, encoding = connection.execute(_READ_BACK, {"time": _A_TIME, "text": _A_TEXT}).one()
    if time != _A_TIME or read not in {_A_TEXT, r"\xfc"}:
        raise ConfigurationError(
            [f"Postgres gives {_A_TIME} and '{_A_TEXT}' back as {time} and '{read}': look at the pooler"]
        )
    return str(encoding)


def odd_settings(connection: Connection) -> list[tuple[str, str]]:
    """The settings of this session that slow ticks down or end them, with their values."""
    rows = connection.execute(_SETTINGS, {"short": _SHORT_MILLISECONDS})
    return [(row.name, row.setting) for row in rows]


def missing_rights(connection: Connection) -> list[str]:
    """The rights that a tick or a reconcile pass needs and this role lacks: `UPDATE on sync_runs`."""
    return [f"{row.action} on {row.name}" for row in connection.execute(_MISSING_RIGHTS)]


def missing_rights_of_workers(connection: Connection) -> dict[str, list[str]]:
    """The rights that a worker of jobs needs and lacks, by the role; of every role that may change jobs."""
    missing: dict[str, list[str]] = {}
    names = {"stopped": STOPPED_RUNS, "events": "sync_job_events", "jobs": "sync_jobs"}
    columns = {"columns": list(_COLUMNS_OF_WORKERS)}
    for row in connection.execute(_MISSING_RIGHTS_OF_WORKERS, {**names, **columns}):
        missing.setdefault(row.role, []).append(row.what)
    return missing


def guarded_tables(connection: Connection) -> list[str]:
    """The tables of the ledger of which row level security shows this role only some rows."""
    return list(connection.execute(_GUARDED).scalars())


def guard_of_users(connection: Connection, relation: UsersRelation) -> Guard | None:
    """The table of users, or one below a view of users, that has row level security for this role."""
    row = connection.execute(_USERS_BELOW, {"name": relation.quoted}).one_or_none()
    return None if row is None else Guard(row.name, row.has_rows)
