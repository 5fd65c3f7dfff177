"""Nobody waits long for a month that is made, and dead workers are found by an index of their own.

The function waits 0.2 s, not 5, and says "not yet"; it reads the default partition only where that has
nothing of the month. The index over leases no longer names a state, so that the planner cannot take the
one over open jobs in its place: `rescue.py` says when it would.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

NO_RUNNING = """
DROP INDEX sync_jobs_running
"""

RUNNING = """
CREATE INDEX sync_jobs_running ON sync_jobs (leased_until) WHERE leased_until IS NOT NULL
"""

# A table of its own is made first and then attached: that waits for those who use the default partition
# alone, where CREATE TABLE … PARTITION OF would wait for everybody. Others wait behind it, whichever month
# they want, since a plan that is kept locks all partitions: so it waits but shortly. Its key is its own,
# since a key of the whole would have to have the run's id in it.
ADD_MONTH = """
CREATE OR REPLACE FUNCTION sync_jobs_add_month(name text, first_run_id uuid, next_run_id uuid)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {schema}, pg_temp SET lock_timeout = '200ms' AS $$
BEGIN
    IF to_regclass(name) IS NOT NULL OR name !~ '^sync_jobs_[0-9]{4}_[0-9]{2}$'
        OR NOT EXISTS (SELECT FROM pg_class WHERE oid = 'sync_jobs'::regclass AND relkind = 'p') THEN
        RETURN false;
    END IF;
    -- By the index, and without a lock that anybody waits for: attaching would read the whole default
    -- partition only to find this.
    IF EXISTS (SELECT FROM sync_jobs_monthless WHERE run_id >= first_run_id AND run_id < next_run_id) THEN
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
EXCEPTION
    WHEN check_violation THEN
        -- A run of that month has come into the default partition since we looked: it is the month's place.
        RETURN false;
    WHEN lock_not_available THEN
        RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Replaces the index and the function; whoever might call it still may."""
    op.execute(NO_RUNNING)
    op.execute(RUNNING)
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    op.execute(ADD_MONTH.replace("{schema}", schema))


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("the ledger is not thrown away; restore a backup instead")
