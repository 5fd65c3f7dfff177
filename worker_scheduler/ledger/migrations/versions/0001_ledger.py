"""The ledger: runs, batches, jobs, locks. Adopts a `sync_jobs` table that an older scheduler left."""

from alembic import op

from worker_scheduler.ledger.migrations.adoption import adopt_sync_jobs, older_sync_jobs_exist

revision = "0001"
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
    finished_at       timestamptz
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
    job_id        uuid PRIMARY KEY,
    user_id       uuid NOT NULL,
    github_login  text,
    status        text NOT NULL DEFAULT 'PENDING' CONSTRAINT sync_jobs_status_check
        CHECK (status IN ('PENDING', 'RUNNING', 'COMPLETED', 'FAILED', 'SKIPPED')),
    error_message text,
    backfill_days integer,
    triggered_by  text NOT NULL,
    partition_key text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    started_at    timestamptz,
    completed_at  timestamptz,
    run_id        uuid,
    attempt       smallint NOT NULL DEFAULT 0,
    leased_until  timestamptz,
    not_before    timestamptz
)
"""

ONE_JOB_PER_USER = """
CREATE UNIQUE INDEX sync_jobs_one_job_per_user ON sync_jobs (run_id, user_id)
    WHERE run_id IS NOT NULL
"""

OPEN = """
CREATE INDEX sync_jobs_open ON sync_jobs (run_id, job_id) WHERE status IN ('PENDING', 'RUNNING')
"""

RUNNING = """
CREATE INDEX sync_jobs_running ON sync_jobs (leased_until) WHERE status = 'RUNNING'
"""

DELAYED = """
CREATE INDEX sync_jobs_delayed ON sync_jobs (not_before) WHERE not_before IS NOT NULL
"""

PARTITION = """
CREATE INDEX sync_jobs_partition ON sync_jobs USING brin (partition_key, created_at)
    WITH (autosummarize = on)
"""

ORIGIN = """
CREATE TABLE sync_origin (since timestamptz NOT NULL)
"""

BEGIN = """
INSERT INTO sync_origin (since) VALUES (CURRENT_TIMESTAMP)
"""

LOCKS = """
CREATE TABLE sync_locks (
    lock_id       bigint PRIMARY KEY,
    holder        uuid NOT NULL,
    partition_key text NOT NULL,
    acquired_at   timestamptz NOT NULL,
    leased_until  timestamptz NOT NULL
)
"""


def upgrade() -> None:
    """Makes the tables, or takes over what is there."""
    op.execute(RUNS)
    op.execute(BATCHES)
    op.execute(UNSENT)
    if older_sync_jobs_exist(op.get_bind()):
        adopt_sync_jobs(op.get_bind())
    else:
        op.execute(JOBS)
    op.execute(ONE_JOB_PER_USER)
    op.execute(OPEN)
    op.execute(RUNNING)
    op.execute(DELAYED)
    op.execute(PARTITION)
    op.execute(LOCKS)
    op.execute(ORIGIN)
    op.execute(BEGIN)


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("the ledger is not thrown away; restore a backup instead")
