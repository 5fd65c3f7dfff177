"""Fills a ledger with runs of many open jobs, while Postgres' statistics are of the time before them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg

from tests.support.databases import url_of
from tests.support.older_scheduler import OLDER_SCHEDULERS
from worker_scheduler.ledger import months
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.schema import upgrade

JOBS_PER_BATCH = 100
NOW = datetime.now(UTC)
_AT = NOW - timedelta(hours=1)
SENT_IN = uuid4()
"""The broker epoch in which everything was published."""

_RUN = """
    INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, state, jobs, batches, slot,
                           created_at, planned_at, enqueued_at)
    VALUES (%(run_id)s, %(key)s, 'daily', 'scheduler.daily', %(state)s, %(jobs)s, %(batches)s,
            %(at)s, %(at)s, %(at)s, %(at)s)
"""
_JOBS = """
    INSERT INTO sync_jobs (job_id, user_id, github_login, triggered_by, partition_key, created_at, run_id,
                           status, attempt, leased_until, not_before, republished_in, republished_at)
    SELECT (%(prefix)s || lpad(to_hex(n), 8, '0'))::uuid, md5(n::text)::uuid, 'user-' || n,
           'scheduler.daily', %(key)s, %(at)s, %(run_id)s, %(status)s, %(attempt)s, %(leased_until)s,
           %(not_before)s, %(republished_in)s, %(republished_at)s
    FROM generate_series(1, %(jobs)s) n
"""
_BATCHES = """
    INSERT INTO sync_batches (run_id, number, first_user_id, last_user_id, first_job_id, last_job_id, jobs,
                              group_id, enqueued_at, broker_epoch)
    SELECT %(run_id)s, b, %(run_id)s, %(run_id)s,
           (%(prefix)s || lpad(to_hex(b * %(size)s + 1), 8, '0'))::uuid,
           (%(prefix)s || lpad(to_hex((b + 1) * %(size)s), 8, '0'))::uuid, %(size)s, gen_random_uuid(),
           %(enqueued_at)s, %(epoch)s
    FROM generate_series(0, %(batches)s - 1) b
"""
_NO_AUTOVACUUM = "ALTER TABLE {} SET (autovacuum_enabled = off)"
_TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relname LIKE 'sync_%' AND relkind = 'r'"


@dataclass(frozen=True)
class OpenRun:
    """A run whose jobs are alike. Their ids end with their numbers, from 1 on."""

    name: str
    jobs: int
    columns: dict[str, object] = field(default_factory=dict)
    sent: bool = True
    run_state: str = "ENQUEUED"
    run_id: UUID = field(default_factory=lambda: months.new_run_id(_AT))
    prefix: str = field(default_factory=lambda: months.uuid_prefix(_AT))

    def job_id(self, number: int) -> UUID:
        """The id of one of its jobs."""
        return UUID(f"{self.prefix}{number:08x}")


def migrate(server_url: str, database: str, older_rows: int = 0) -> str:
    """Migrates a new database; returns its URL. older_rows: more than 0 for an older scheduler's table."""
    url = url_of(server_url, database)
    if older_rows:
        OLDER_SCHEDULERS[0].leave_behind(url, older_rows)
    migrated = Database(url.replace("postgresql:", "postgresql+psycopg:", 1))
    upgrade(migrated)
    migrated.dispose()
    return url


def fill(url: str, earlier: list[OpenRun], runs: list[OpenRun]) -> None:
    """Makes runs of an hour ago. The statistics are of the time after the `earlier` ones, and stay so."""
    database = Database(url.replace("postgresql:", "postgresql+psycopg:", 1))
    with database.autocommit() as connection:
        months.ensure(connection, months.new_run_id(_AT))
        months.ensure_next(connection, _AT)
    database.dispose()
    with psycopg.connect(url, autocommit=True) as connection:
        for (table,) in connection.execute(_TABLES).fetchall():
            connection.execute(_NO_AUTOVACUUM.format(table).encode())
        for run in earlier:
            _insert(connection, run)
        connection.execute("VACUUM ANALYZE sync_jobs, sync_batches, sync_runs, sync_suspects")
        for run in runs:
            _insert(connection, run)


def _insert(connection: psycopg.Connection, run: OpenRun) -> None:
    values: dict[str, object] = {
        **{"run_id": run.run_id, "key": f"daily:{run.name}", "jobs": run.jobs, "at": _AT},
        **{"batches": run.jobs // JOBS_PER_BATCH, "size": JOBS_PER_BATCH, "state": run.run_state},
        **{"status": "PENDING", "attempt": 0, "leased_until": None, "not_before": None},
        **{"republished_in": None, "republished_at": None, "prefix": run.prefix},
        **{"enqueued_at": _AT if run.sent else None, "epoch": SENT_IN if run.sent else None},
        **run.columns,
    }
    for statement in (_RUN, _JOBS, _BATCHES):
        connection.execute(statement.encode(), values)
