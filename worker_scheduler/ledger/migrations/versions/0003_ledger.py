"""Creates the ledger: runs, batches, jobs divided by months, tick locks, the origin of due days.

A `sync_jobs` table that an older scheduler left is adopted instead of created, and stays one table. This
revision is frozen: it reads no table, enum or number of the present code. It starts at 0003 because the
revisions 0001 and 0002, which were never released, are part of it.
"""

from alembic import op

from worker_scheduler.ledger.migrations.adoption import (
    adopt_sync_jobs,
    free_our_names,
    older_sync_jobs_exist,
)

revision = "0003"
down_revision = None

RUNS = """
CREATE TABLE sync_runs (
    run_id            uuid PRIMARY KEY,
    partition_key     text NOT NULL CONSTRAINT sync_runs_partition_key_key UNIQUE,
    kind              text NOT NULL CONSTRAINT sync_runs_kind_check CHECK (kind IN ('daily', 'backfill')),
    triggered_by      text NOT NULL,
    requested_by      text,
    backfill_days     integer,
    selected_user_ids uuid[],
    slot              timestamptz,
    state             text NOT NULL CONSTRAINT sync_runs_state_check
        CHECK (state IN ('PLANNING', 'DISPATCHING', 'ENQUEUED', 'FINISHED', 'MISSED')),
    planned_through   uuid,
    leased_until      timestamptz,
    jobs              bigint NOT NULL DEFAULT 0,
    batches           integer NOT NULL DEFAULT 0,
    completed         bigint,
    failed            bigint,
    skipped           bigint,
    created_at        timestamptz NOT NULL,
    planned_at        timestamptz,
    enqueued_at       timestamptz,
    finished_at       timestamptz,
    jobs_before       bigint NOT NULL DEFAULT 0,
    pruned_at         timestamptz
)
"""

BATCHES = """
CREATE TABLE sync_batches (
    run_id        uuid NOT NULL REFERENCES sync_runs (run_id),
    number        integer NOT NULL,
    first_user_id uuid NOT NULL,
    last_user_id  uuid NOT NULL,
    first_job_id  uuid NOT NULL,
    last_job_id   uuid NOT NULL,
    jobs          integer NOT NULL CONSTRAINT sync_batches_jobs_check CHECK (jobs > 0),
    group_id      uuid NOT NULL,
    generation    integer NOT NULL DEFAULT 0,
    claimed_by    uuid,
    claimed_until timestamptz,
    enqueued_at   timestamptz,
    broker_epoch  uuid,
    PRIMARY KEY (run_id, number)
)
"""

UNSENT = """
CREATE INDEX sync_batches_unsent ON sync_batches (run_id, number) WHERE enqueued_at IS NULL
"""

JOBS = """
CREATE TABLE sync_jobs (
    job_id         uuid NOT NULL,
    user_id        uuid NOT NULL,
    github_login   text,
    status         text NOT NULL DEFAULT 'PENDING' CONSTRAINT sync_jobs_status_check
        CHECK (status IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'SKIPPED')),
    error_message  text,
    backfill_days  integer,
    triggered_by   text NOT NULL,
    partition_key  text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    started_at     timestamptz,
    completed_at   timestamptz,
    run_id         uuid,
    attempt        smallint NOT NULL DEFAULT 0,
    leased_until   timestamptz,
    not_before     timestamptz,
    republished_in uuid
) PARTITION BY RANGE (run_id)
"""

# The default partition, for jobs whose run is in no month. It has a primary key of its own, as each month
# has: a primary key of the whole table would have to contain the run's id.
DEFAULT_PARTITION = (
    "CREATE TABLE sync_jobs_monthless (LIKE sync_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
    "ALTER TABLE sync_jobs_monthless ADD PRIMARY KEY (job_id)",
    """
    CREATE UNIQUE INDEX sync_jobs_monthless_one_job_per_user ON sync_jobs_monthless (run_id, user_id)
        WHERE run_id IS NOT NULL
    """,
    """
    CREATE INDEX sync_jobs_monthless_open ON sync_jobs_monthless (run_id, job_id)
        WHERE status IN ('PENDING', 'RUNNING')
    """,
    """
    CREATE INDEX sync_jobs_monthless_delayed ON sync_jobs_monthless (not_before)
        WHERE not_before IS NOT NULL
    """,
    """
    CREATE INDEX sync_jobs_monthless_republished ON sync_jobs_monthless (run_id, republished_in)
        WHERE republished_in IS NOT NULL AND status = 'PENDING'
    """,
    """
    CREATE INDEX sync_jobs_monthless_partition ON sync_jobs_monthless USING brin (partition_key, created_at)
        WITH (autosummarize = on)
    """,
    "ALTER TABLE sync_jobs ATTACH PARTITION sync_jobs_monthless DEFAULT",
)

# On a divided table each of them also covers every partition.
JOB_INDEXES = (
    """
    CREATE UNIQUE INDEX sync_jobs_one_job_per_user ON sync_jobs (run_id, user_id)
        WHERE run_id IS NOT NULL
    """,
    "CREATE INDEX sync_jobs_open ON sync_jobs (run_id, job_id) WHERE status IN ('PENDING', 'RUNNING')",
    # Without a state in its condition: with stale statistics the planner would take sync_jobs_open instead.
    "CREATE INDEX sync_jobs_running ON sync_jobs (leased_until) WHERE leased_until IS NOT NULL",
    "CREATE INDEX sync_jobs_delayed ON sync_jobs (not_before) WHERE not_before IS NOT NULL",
    """
    CREATE INDEX sync_jobs_republished ON sync_jobs (run_id, republished_in)
        WHERE republished_in IS NOT NULL AND status = 'PENDING'
    """,
    """
    CREATE INDEX sync_jobs_partition ON sync_jobs USING brin (partition_key, created_at)
        WITH (autosummarize = on)
    """,
)

LOCKS = """
CREATE TABLE sync_locks (
    lock_id       bigint PRIMARY KEY,
    holder        uuid NOT NULL,
    partition_key text NOT NULL,
    acquired_at   timestamptz NOT NULL,
    leased_until  timestamptz NOT NULL
)
"""

ORIGIN = """
CREATE TABLE sync_origin (since timestamptz NOT NULL, cron text, timezone text)
"""

FIRST_ORIGIN = """
INSERT INTO sync_origin (since) VALUES (CURRENT_TIMESTAMP)
"""

# Ticks and reconcile call this function with a role that may not change tables, so it runs with the rights
# of its owner and does nothing else. It creates a table and then attaches it: ATTACH waits only for those
# who use the default partition, while CREATE TABLE … PARTITION OF would wait for everyone who uses
# sync_jobs. Others queue behind the waiting ATTACH, no matter which month they want, because a cached plan
# locks all partitions. So it waits for 0.2 s at most. The advisory lock is SCHEMA_CHANGE of
# advisory_locks.py, as a number.
ADD_MONTH = """
CREATE FUNCTION sync_jobs_add_month(name text, first_run_id uuid, next_run_id uuid)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {schema}, pg_temp SET lock_timeout = '200ms' AS $$
BEGIN
    IF to_regclass(name) IS NOT NULL OR name !~ '^sync_jobs_[0-9]{4}_[0-9]{2}$'
        OR NOT EXISTS (SELECT FROM pg_class WHERE oid = 'sync_jobs'::regclass AND relkind = 'p') THEN
        RETURN false;
    END IF;
    -- This uses an index and takes no lock that others wait for. ATTACH would read the whole default
    -- partition to find the same rows.
    IF EXISTS (SELECT FROM sync_jobs_monthless WHERE run_id >= first_run_id AND run_id < next_run_id) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(x'7761766500'::bigint);
    -- A query has a snapshot that is younger than the lock; to_regclass() could repeat its first answer.
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
        -- Since the check above, a run of that month has put jobs into the default partition: the month
        -- stays there.
        RETURN false;
    WHEN lock_not_available THEN
        RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Creates the tables, or adopts the older scheduler's table of jobs and creates the others."""
    connection = op.get_bind()
    older = older_sync_jobs_exist(connection)
    if older:
        free_our_names(connection)
    op.execute(RUNS)
    op.execute(BATCHES)
    op.execute(UNSENT)
    if older:
        adopt_sync_jobs(connection)
    else:
        op.execute(JOBS)
        for statement in DEFAULT_PARTITION:
            op.execute(statement)
    for statement in JOB_INDEXES:
        op.execute(statement)
    op.execute(LOCKS)
    op.execute(ORIGIN)
    op.execute(FIRST_ORIGIN)
    schema = connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    op.execute(ADD_MONTH.replace("{schema}", schema))
    op.execute("REVOKE ALL ON FUNCTION sync_jobs_add_month(text, uuid, uuid) FROM PUBLIC")


def downgrade() -> None:
    """Raises NotImplementedError: a downgrade would drop the ledger."""
    raise NotImplementedError("the ledger cannot be downgraded; restore a backup instead")
