"""Divides `sync_jobs` by the months of its runs; writes no row anew. It decides where it may not.

`months.py` says how a run's id names a month. The table of before becomes the default partition: for the
rows that it holds, for an older scheduler's, and for what fits into no month.
"""

from __future__ import annotations

import structlog
from sqlalchemy import Connection, text

log = structlog.get_logger(__name__)

_OURS = [
    *("job_id", "user_id", "github_login", "status", "error_message", "backfill_days", "triggered_by"),
    *("partition_key", "created_at", "started_at", "completed_at", "run_id", "attempt", "leased_until"),
    *("not_before", "republished_in"),
]

_COLUMNS = text(
    "SELECT attname FROM pg_attribute WHERE attrelid = 'sync_jobs'::regclass AND attnum > 0"
    " AND NOT attisdropped ORDER BY attnum"
)
_HAS_OUR_KEY = text(
    "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'sync_jobs'::regclass"
    " AND conname = 'sync_jobs_pkey')"
)

# They know the table by its number, not by its name, so they would go on seeing the older part alone.
_HANGING_ON = text(
    """
    SELECT string_agg(what, ', ') FROM (
        SELECT 'view ' || r.ev_class::regclass AS what FROM pg_rewrite r JOIN pg_depend d
            ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = 'sync_jobs'::regclass
        UNION SELECT 'foreign key ' || conname FROM pg_constraint
            WHERE contype = 'f' AND 'sync_jobs'::regclass IN (confrelid, conrelid)
        UNION SELECT 'trigger ' || tgname FROM pg_trigger
            WHERE tgrelid = 'sync_jobs'::regclass AND NOT tgisinternal
        UNION SELECT 'policy ' || polname FROM pg_policy WHERE polrelid = 'sync_jobs'::regclass
        UNION SELECT 'publication ' || p.pubname FROM pg_publication_rel r
            JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = 'sync_jobs'::regclass
    ) hanging
    """
)

_SET_ASIDE = """
ALTER TABLE sync_jobs RENAME TO sync_jobs_monthless;
ALTER TABLE sync_jobs_monthless RENAME CONSTRAINT sync_jobs_pkey TO sync_jobs_monthless_pkey;
ALTER INDEX sync_jobs_one_job_per_user RENAME TO sync_jobs_monthless_one_job_per_user;
ALTER INDEX sync_jobs_open RENAME TO sync_jobs_monthless_open;
ALTER INDEX sync_jobs_running RENAME TO sync_jobs_monthless_running;
ALTER INDEX sync_jobs_delayed RENAME TO sync_jobs_monthless_delayed;
ALTER INDEX sync_jobs_republished RENAME TO sync_jobs_monthless_republished;
ALTER INDEX sync_jobs_partition RENAME TO sync_jobs_monthless_partition;
CREATE TABLE sync_jobs (LIKE sync_jobs_monthless INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
    PARTITION BY RANGE (run_id);
ALTER TABLE sync_jobs ATTACH PARTITION sync_jobs_monthless DEFAULT;
CREATE UNIQUE INDEX sync_jobs_one_job_per_user ON sync_jobs (run_id, user_id) WHERE run_id IS NOT NULL;
CREATE INDEX sync_jobs_open ON sync_jobs (run_id, job_id) WHERE status IN ('PENDING', 'RUNNING');
CREATE INDEX sync_jobs_running ON sync_jobs (leased_until) WHERE status = 'RUNNING';
CREATE INDEX sync_jobs_delayed ON sync_jobs (not_before) WHERE not_before IS NOT NULL;
CREATE INDEX sync_jobs_republished ON sync_jobs (run_id, republished_in)
    WHERE republished_in IS NOT NULL AND status = 'PENDING';
CREATE INDEX sync_jobs_partition ON sync_jobs USING brin (partition_key, created_at)
    WITH (autosummarize = on)
"""

# Whoever may use the table may use it divided.
_COPY_GRANTS = """
DO $$
DECLARE given record;
BEGIN
    FOR given IN
        SELECT a.privilege_type, a.grantee, '' AS columns
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'sync_jobs_monthless'::regclass AND a.grantee <> c.relowner
        UNION ALL
        SELECT a.privilege_type, a.grantee, format('(%I)', t.attname)
        FROM pg_attribute t, aclexplode(t.attacl) a
        WHERE t.attrelid = 'sync_jobs_monthless'::regclass AND NOT t.attisdropped
    LOOP
        EXECUTE format('GRANT %s %s ON sync_jobs TO %s', given.privilege_type, given.columns,
            CASE given.grantee WHEN 0 THEN 'PUBLIC' ELSE given.grantee::regrole::text END);
    END LOOP;
END $$
"""

# Ticks call it, by a role that may not change tables; so it runs as its owner, and does this alone.
# A table of its own is made first and then attached: that lets others go on with the rest, where
# CREATE TABLE … PARTITION OF would wait for all of them, and they for it. Its key is its own, since a
# key of the whole would have to have the run's id in it.
ADD_MONTH = """
CREATE FUNCTION sync_jobs_add_month(name text, first_run_id uuid, next_run_id uuid)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {schema}, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
    IF to_regclass(name) IS NOT NULL OR name !~ '^sync_jobs_[0-9]{4}_[0-9]{2}$'
        OR NOT EXISTS (SELECT FROM pg_class WHERE oid = 'sync_jobs'::regclass AND relkind = 'p') THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(x'7761766500'::bigint);
    -- By a query, whose snapshot is younger than the lock; to_regclass() would repeat its answer.
    IF EXISTS (SELECT FROM pg_class c
               WHERE c.relname = name AND c.relnamespace = current_schema()::regnamespace) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE sync_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (job_id)', name);
    EXECUTE format('ALTER TABLE sync_jobs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, first_run_id, next_run_id);
    RETURN true;
EXCEPTION WHEN check_violation THEN
    -- The default partition has a run of that month, by a random id of an earlier version: it is the
    -- month's place then.
    RAISE WARNING 'no partition %', name;
    RETURN false;
END $$
"""


def partition_sync_jobs(connection: Connection) -> None:
    """Divides the table where it is ours alone; else leaves it whole, and says why."""
    has_our_key = connection.execute(_HAS_OUR_KEY).scalar_one()
    if not has_our_key or list(connection.execute(_COLUMNS).scalars()) != _OURS:
        log.info("sync_jobs stays one table: an older scheduler has made it")
        return
    hanging = connection.execute(_HANGING_ON).scalar_one()
    if hanging is not None:
        log.warning("sync_jobs stays one table: others hang on it", others=hanging)
        return
    for statement in (*_SET_ASIDE.split(";"), _COPY_GRANTS):
        connection.execute(text(statement))
