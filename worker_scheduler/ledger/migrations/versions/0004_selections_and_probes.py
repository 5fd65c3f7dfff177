"""Adds what the promises need against clocks, silence and strangers.

- The users that a run was asked for, a row each, instead of an array in one row of sync_runs.
- Which partition a task works on, so that a redelivered task keeps it.
- Probe messages, the jobs that are suspected to have lost their message, and the broker epochs seen.
- When the last pass of reconcile began and ended, and how often a run could not be resumed.
- A key for sync_origin, and a replica identity for an older scheduler's sync_jobs without a key, so that a
  publication FOR ALL TABLES does not forbid their UPDATE.
- sync_jobs_add_month computes the month's bounds itself.

It may run while workers of version 0003 run jobs: it adds columns, and none of those that they use changes.
This revision is frozen: it reads no table, enum or number of the present code.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

SELECTED_USERS = (
    """
    CREATE TABLE sync_selected_users (
        run_id  uuid NOT NULL,
        user_id uuid NOT NULL,
        PRIMARY KEY (run_id, user_id)
    )
    """,
    """
    INSERT INTO sync_selected_users (run_id, user_id)
    SELECT DISTINCT run_id, unnest(selected_user_ids) FROM sync_runs WHERE selected_user_ids IS NOT NULL
    """,
    "ALTER TABLE sync_runs ADD COLUMN chosen_users boolean NOT NULL DEFAULT false",
    "UPDATE sync_runs SET chosen_users = true WHERE selected_user_ids IS NOT NULL",
    "ALTER TABLE sync_runs DROP COLUMN selected_user_ids",
)

TASKS = """
CREATE TABLE sync_tasks (
    task_id       text PRIMARY KEY,
    partition_key text NOT NULL,
    created_at    timestamptz NOT NULL
)
"""

PROBES = """
CREATE TABLE sync_probes (
    probe_id   uuid PRIMARY KEY,
    queue      text NOT NULL,
    sent_at    timestamptz NOT NULL,
    arrived_at timestamptz
)
"""

# batch: NULL if the message was published on its own. attempt: the job's attempt when it was suspected.
# missed_at: when its message was not found with any worker.
SUSPECTS = """
CREATE TABLE sync_suspects (
    job_id       uuid PRIMARY KEY,
    run_id       uuid NOT NULL,
    queue        text NOT NULL,
    batch        integer,
    attempt      smallint NOT NULL,
    suspected_at timestamptz NOT NULL,
    missed_at    timestamptz
)
"""

SUSPECTS_OF_A_RUN = "CREATE INDEX sync_suspects_run ON sync_suspects (run_id, job_id)"

# look: the number of the last look that found it. returned_at: when it was found again after another epoch
# was. reconciled_at: when a pass of reconcile found it, not a tick.
BROKER_EPOCHS = """
CREATE TABLE sync_broker_epochs (
    epoch     uuid PRIMARY KEY,
    broker    text NOT NULL,
    seen_from timestamptz NOT NULL,
    seen_last timestamptz NOT NULL,
    look bigint NOT NULL,
    returned_at timestamptz,
    reconciled_at timestamptz
)
"""

PASSES = """
CREATE TABLE sync_passes (
    name     text PRIMARY KEY,
    begun_at timestamptz NOT NULL,
    ended_at timestamptz
)
"""

RUN_FAILURES = """
ALTER TABLE sync_runs
    ADD COLUMN failures integer NOT NULL DEFAULT 0,
    ADD COLUMN retry_after timestamptz
"""

# NULL: the message was published with its batch, at the batch's enqueued_at.
REPUBLISHED_AT = "ALTER TABLE sync_jobs ADD COLUMN republished_at timestamptz"

ORIGIN_KEY = """
ALTER TABLE sync_origin
    ADD COLUMN only_row boolean PRIMARY KEY DEFAULT true
        CONSTRAINT sync_origin_only_row_check CHECK (only_row)
"""

# A table without a key may not be updated under a publication FOR ALL TABLES. An older scheduler's table
# may have none; then the whole old row identifies a row, which costs nothing without a publication.
REPLICA_IDENTITY = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = 'sync_jobs'::regclass AND c.relkind = 'r'
               AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)))
    THEN
        ALTER TABLE sync_jobs REPLICA IDENTITY FULL;
    END IF;
END $$
"""

# As in 0003, but the bounds follow from the name, so that no caller can make a month with other bounds.
# The id of a run begins with its time in milliseconds, 48 bits.
ADD_MONTH = """
CREATE OR REPLACE FUNCTION sync_jobs_add_month(name text, first_run_id uuid, next_run_id uuid)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {schema}, pg_temp SET lock_timeout = '200ms' SET timezone = 'UTC' AS $$
DECLARE
    year integer := substring(name FROM '^sync_jobs_([0-9]{4})_(?:0[1-9]|1[0-2])$');
    month timestamptz;
    first uuid;
    following uuid;
BEGIN
    IF year IS NULL OR year NOT BETWEEN 1970 AND 9998 THEN
        RAISE EXCEPTION '% is not the name of a month of sync_jobs', quote_nullable(name)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    month := make_timestamptz(year, right(name, 2)::integer, 1, 0, 0, 0, 'UTC');
    first := rpad(lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0'), 32, '0');
    month := month + interval '1 month';
    following := rpad(lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0'), 32, '0');
    IF (first_run_id, next_run_id) IS DISTINCT FROM (first, following) THEN
        RAISE EXCEPTION '% has the run ids from % to %, not from % to %',
            name, first, following, first_run_id, next_run_id USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF to_regclass(quote_ident(name)) IS NOT NULL
        OR NOT EXISTS (SELECT FROM pg_class WHERE oid = 'sync_jobs'::regclass AND relkind = 'p') THEN
        RETURN false;
    END IF;
    -- This uses an index and takes no lock that others wait for. ATTACH would read the whole default
    -- partition to find the same rows.
    IF EXISTS (SELECT FROM sync_jobs_monthless WHERE run_id >= first AND run_id < following) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(x'7761766500'::bigint);
    -- A query has a snapshot that is younger than the lock; to_regclass() could repeat its first answer.
    IF EXISTS (SELECT FROM pg_class c
               WHERE c.relname = name
                   AND c.relnamespace = quote_ident(current_schema())::regnamespace) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE sync_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (job_id)', name);
    EXECUTE format('ALTER TABLE sync_jobs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, first, following);
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

# Every role that may do something with the tables of 0003 may do what this version needs for it: deploying
# must not wait for somebody who grants rights. The owner needs no grant.
GRANTS = """
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT r.rolname,
            has_any_column_privilege(r.oid, 'sync_jobs', 'UPDATE') AS works,
            has_table_privilege(r.oid, 'sync_runs', 'INSERT') AS schedules,
            has_table_privilege(r.oid, 'sync_runs', 'SELECT') AS reads
        FROM pg_roles r
        WHERE NOT r.rolsuper AND r.rolname !~ '^pg_'
            AND r.oid <> (SELECT relowner FROM pg_class WHERE oid = 'sync_runs'::regclass)
    LOOP
        IF given.schedules THEN
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON sync_selected_users, sync_tasks,'
                ' sync_probes, sync_suspects, sync_broker_epochs, sync_passes TO %I', given.rolname);
        END IF;
        IF given.works THEN
            EXECUTE format('GRANT SELECT, UPDATE (arrived_at) ON sync_probes TO %I', given.rolname);
        END IF;
        IF given.reads THEN
            EXECUTE format('GRANT SELECT ON sync_selected_users, sync_tasks, sync_probes, sync_suspects,'
                ' sync_broker_epochs, sync_passes TO %I', given.rolname);
        END IF;
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Adds the tables and columns, and gives the roles of 0003 their rights on them."""
    connection = op.get_bind()
    for statement in SELECTED_USERS:
        op.execute(statement)
    for statement in (
        TASKS,
        PROBES,
        SUSPECTS,
        SUSPECTS_OF_A_RUN,
        BROKER_EPOCHS,
        PASSES,
        RUN_FAILURES,
        ORIGIN_KEY,
        # Last, since every claim waits from here to the end.
        REPUBLISHED_AT,
        REPLICA_IDENTITY,
    ):
        op.execute(statement)
    schema = connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    connection.exec_driver_sql(ADD_MONTH.replace("{schema}", schema).replace("%", "%%"))
    op.execute(GRANTS)


def downgrade() -> None:
    """Raises NotImplementedError: a downgrade would drop the ledger."""
    raise NotImplementedError("the ledger cannot be downgraded; restore a backup instead")
