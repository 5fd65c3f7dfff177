"""Adds what people want of runs, why jobs ended, and two histories.

- Pause and cancel of a run, and the schedule's own pause, beside the states that say how far work has come.
- For each job that did not complete: why, as data. A cancelled job says so by a time of its own.
- What a partition that is triggered again must not forget: when it first finished, and with which counts.
- sync_requests: who asked for what. sync_job_events: what happened to jobs that did not simply succeed.
  Both are divided by months and only grow.
- sync_retries: which jobs a retry is still to walk through.
- Samples of open runs and queues, once a minute.
- sync_stopped_runs: the little that a worker must know of paused and cancelled runs.

It may run while workers of version 0005 run jobs: it adds columns, and none of those that they use changes.
To build the index over reasons, Postgres reads sync_jobs once, and claims wait for that.
This revision is frozen: it reads no table, enum or number of the present code.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

# resumed_at: since when parked jobs are released. stop_on_failures: percent. missed_because: why a day
# without a run has none. fed_at: when the feeder of backfills last sent a part of it. NULL each: not so.
RUNS = """
ALTER TABLE sync_runs
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_by text,
    ADD COLUMN pause_reason text,
    ADD COLUMN paused_until timestamptz,
    ADD COLUMN resumed_at timestamptz,
    ADD COLUMN cancelled_at timestamptz,
    ADD COLUMN cancelled_by text,
    ADD COLUMN cancel_reason text,
    ADD COLUMN stop_on_failures smallint
        CONSTRAINT sync_runs_stop_on_failures_check CHECK (stop_on_failures BETWEEN 1 AND 100),
    ADD COLUMN missed_because text,
    ADD COLUMN fed_at timestamptz,
    ADD COLUMN cancelled bigint,
    ADD COLUMN first_finished_at timestamptz,
    ADD COLUMN first_completed bigint,
    ADD COLUMN first_failed bigint,
    ADD COLUMN first_skipped bigint
"""

FIRST_ENDS = """
UPDATE sync_runs SET first_finished_at = finished_at, first_completed = completed, first_failed = failed,
    first_skipped = skipped, cancelled = 0
WHERE state = 'FINISHED'
"""

SCHEDULE = """
CREATE TABLE sync_schedule (
    only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT sync_schedule_only_row_check CHECK (only_row),
    paused_at timestamptz,
    paused_by text,
    pause_reason text,
    paused_until timestamptz
)
"""

ONE_SCHEDULE = "INSERT INTO sync_schedule DEFAULT VALUES"

# Read by every worker, once a second. A run is listed as long as one of its jobs may still start.
STOPPED_RUNS = """
CREATE VIEW sync_stopped_runs AS
SELECT run_id, cancelled_at IS NOT NULL AS cancelled FROM sync_runs
WHERE state NOT IN ('FINISHED', 'MISSED')
    AND (cancelled_at IS NOT NULL
         OR paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > clock_timestamp()))
"""

STOPPED_RUNS_INDEX = """
CREATE INDEX sync_runs_stopped ON sync_runs (run_id)
    WHERE state NOT IN ('FINISHED', 'MISSED') AND (cancelled_at IS NOT NULL OR paused_at IS NOT NULL)
"""

# reason_class: a class of Python with its module, or one of our own words, which have no module. An index
# over it never changes with a claim, nor with the end of a job that completes.
JOBS = """
ALTER TABLE sync_jobs
    ADD COLUMN cancelled_at timestamptz,
    ADD COLUMN reason_class text,
    ADD COLUMN reason_fingerprint bigint
"""

REASONS = """
CREATE INDEX sync_jobs_reasons ON sync_jobs (run_id, reason_class, reason_fingerprint)
    WHERE reason_class IS NOT NULL
"""

REQUESTS = """
CREATE TABLE sync_requests (
    request_id    uuid NOT NULL,
    requested_at  timestamptz NOT NULL,
    verb          text NOT NULL,
    partition_key text,
    run_id        uuid,
    actor         text NOT NULL,
    source        text NOT NULL,
    reason        text,
    options       jsonb NOT NULL,
    outcome       text NOT NULL,
    detail        text,
    PRIMARY KEY (requested_at, request_id)
) PARTITION BY RANGE (requested_at)
"""

JOB_EVENTS = """
CREATE TABLE sync_job_events (
    happened_at   timestamptz NOT NULL,
    job_id        uuid NOT NULL,
    run_id        uuid,
    user_id       uuid NOT NULL,
    attempt       smallint NOT NULL,
    event         text NOT NULL,
    reason_class  text,
    reason_fingerprint bigint,
    error_message text,
    event_id      uuid NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (job_id, happened_at, event_id)
) PARTITION BY RANGE (happened_at)
"""

# What comes while no month has been made goes into a partition of its own.
HISTORIES = (
    REQUESTS,
    "CREATE TABLE sync_requests_monthless PARTITION OF sync_requests DEFAULT",
    "CREATE INDEX sync_requests_key ON sync_requests (partition_key, requested_at)",
    JOB_EVENTS,
    "CREATE TABLE sync_job_events_monthless PARTITION OF sync_job_events DEFAULT",
    "CREATE INDEX sync_job_events_time ON sync_job_events USING brin (happened_at)",
)

# wanted: what a job must be to be tried again. only_users: NULL means any. jobs_left: how many more; NULL
# means all. walked_through: users up to this id have been looked at.
RETRIES = """
CREATE TABLE sync_retries (
    request_id     uuid PRIMARY KEY,
    run_id         uuid NOT NULL REFERENCES sync_runs (run_id),
    asked_at       timestamptz NOT NULL,
    wanted         text NOT NULL
        CONSTRAINT sync_retries_wanted_check CHECK (wanted IN ('failed', 'skipped', 'cancelled')),
    error_like     text,
    only_users     uuid[],
    jobs_left      bigint,
    walked_through uuid,
    jobs           bigint NOT NULL DEFAULT 0,
    ended_at       timestamptz
)
"""

OPEN_RETRIES = "CREATE INDEX sync_retries_open ON sync_retries (asked_at) WHERE ended_at IS NULL"

RUN_SAMPLES = """
CREATE TABLE sync_run_samples (
    run_id     uuid NOT NULL,
    sampled_at timestamptz NOT NULL,
    jobs       bigint NOT NULL,
    pending    bigint NOT NULL,
    running    bigint NOT NULL,
    failed     bigint NOT NULL,
    skipped    bigint NOT NULL,
    cancelled  bigint NOT NULL,
    PRIMARY KEY (run_id, sampled_at)
)
"""

QUEUE_SAMPLES = """
CREATE TABLE sync_queue_samples (
    queue      text NOT NULL,
    sampled_at timestamptz NOT NULL,
    messages   bigint NOT NULL,
    PRIMARY KEY (queue, sampled_at)
)
"""

SAMPLE_TIMES = (
    "CREATE INDEX sync_run_samples_time ON sync_run_samples (sampled_at)",
    "CREATE INDEX sync_queue_samples_time ON sync_queue_samples (sampled_at)",
)

# As sync_jobs_add_month: reconcile calls it with a role that may not make tables. ATTACH takes a lock that
# writers of the history wait for, so it waits for 0.2 s at most, and another pass tries again.
ADD_MONTH = """
CREATE FUNCTION sync_history_add_month(history text, year integer, month integer)
    RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {schema}, pg_temp SET lock_timeout = '200ms' SET timezone = 'UTC' AS $$
DECLARE
    name text := format('%s_%s_%s', history, lpad(year::text, 4, '0'), lpad(month::text, 2, '0'));
    moment text := CASE history WHEN 'sync_requests' THEN 'requested_at' ELSE 'happened_at' END;
    first timestamptz;
    following timestamptz;
    occupied boolean;
BEGIN
    IF history NOT IN ('sync_requests', 'sync_job_events') OR year NOT BETWEEN 1970 AND 9998
        OR month NOT BETWEEN 1 AND 12 OR num_nulls(history, year, month) > 0 THEN
        RAISE EXCEPTION '%, %, % is no month of a history', quote_nullable(history), year, month
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    first := make_timestamptz(year, month, 1, 0, 0, 0, 'UTC');
    following := first + interval '1 month';
    IF to_regclass(quote_ident(name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE %I >= %L AND %2$I < %4$L)',
        history || '_monthless', moment, first, following) INTO occupied;
    IF occupied THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(x'7761766500'::bigint);
    IF EXISTS (SELECT FROM pg_class c
               WHERE c.relname = name
                   AND c.relnamespace = quote_ident(current_schema())::regnamespace) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name, history);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        history, name, first, following);
    RETURN true;
EXCEPTION
    WHEN check_violation THEN
        RETURN false;
    WHEN lock_not_available THEN
        RETURN NULL;
END $$
"""

# The following months are made by reconcile. What comes before this one is made would stay without a month.
THIS_MONTH = """
SELECT sync_history_add_month(history, CAST(extract(year FROM today) AS integer),
    CAST(extract(month FROM today) AS integer))
FROM (VALUES ('sync_requests'), ('sync_job_events')) h (history),
    (SELECT clock_timestamp() AT TIME ZONE 'UTC') t (today)
"""

# Every role that may do something with the tables of 0005 may do what this version needs for it: deploying
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
        IF given.works THEN
            EXECUTE format('GRANT SELECT ON sync_stopped_runs TO %I', given.rolname);
            EXECUTE format('GRANT INSERT ON sync_job_events TO %I', given.rolname);
            EXECUTE format('GRANT UPDATE (cancelled_at, reason_class, reason_fingerprint)'
                ' ON sync_jobs TO %I', given.rolname);
        END IF;
        IF given.schedules THEN
            EXECUTE format('GRANT SELECT, INSERT ON sync_requests, sync_job_events TO %I', given.rolname);
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON sync_retries TO %I', given.rolname);
            EXECUTE format('GRANT SELECT, INSERT, DELETE ON sync_run_samples, sync_queue_samples TO %I',
                given.rolname);
            EXECUTE format('GRANT SELECT, UPDATE ON sync_schedule TO %I', given.rolname);
            EXECUTE format('GRANT SELECT ON sync_stopped_runs TO %I', given.rolname);
            EXECUTE format('GRANT EXECUTE ON FUNCTION sync_history_add_month(text, integer, integer) TO %I',
                given.rolname);
        END IF;
        IF given.reads THEN
            EXECUTE format('GRANT SELECT ON sync_requests, sync_job_events, sync_retries, sync_run_samples,'
                ' sync_queue_samples, sync_schedule, sync_stopped_runs TO %I', given.rolname);
        END IF;
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Adds the tables and columns, and gives the roles of 0005 their rights on them."""
    connection = op.get_bind()
    for statement in (
        RUNS,
        FIRST_ENDS,
        SCHEDULE,
        ONE_SCHEDULE,
        STOPPED_RUNS,
        STOPPED_RUNS_INDEX,
        *HISTORIES,
        RETRIES,
        OPEN_RETRIES,
        RUN_SAMPLES,
        QUEUE_SAMPLES,
        *SAMPLE_TIMES,
    ):
        op.execute(statement)
    schema = connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    connection.exec_driver_sql(ADD_MONTH.replace("{schema}", schema).replace("%", "%%"))
    op.execute("REVOKE ALL ON FUNCTION sync_history_add_month(text, integer, integer) FROM PUBLIC")
    op.execute(THIS_MONTH)
    # Last, since every claim waits from here to the end.
    op.execute(JOBS)
    op.execute(REASONS)
    op.execute(GRANTS)


def downgrade() -> None:
    """Raises NotImplementedError: a downgrade would drop the ledger."""
    raise NotImplementedError("the ledger cannot be downgraded; restore a backup instead")
