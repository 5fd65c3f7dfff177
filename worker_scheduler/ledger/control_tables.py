"""The tables of steering and of history: what people asked for, what happened to jobs, and samples."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from worker_scheduler.ledger.tables import UTC_TIME, metadata, paused_columns

# One row: whether the daily schedule is paused. A run has columns of its own for that.
sync_schedule = Table(
    "sync_schedule",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    *paused_columns(),
    CheckConstraint("only_row", name="sync_schedule_only_row_check"),
)

# Who asked for what, from where, and what came of it, refusals too. Rows are only added, and go by months.
sync_requests = Table(
    "sync_requests",
    metadata,
    Column("request_id", Uuid, nullable=False),
    Column("requested_at", UTC_TIME, nullable=False),
    # The command or task: daily, backfill, pause, resume, cancel, retry.
    Column("verb", Text, nullable=False),
    # As it was asked for, also if there is no such run.
    Column("partition_key", Text),
    Column("run_id", Uuid),
    # Who says to be behind it.
    Column("actor", Text, nullable=False),
    # Where it came from: `cli user@host`, or `task <id>`.
    Column("source", Text, nullable=False),
    Column("reason", Text),
    Column("options", JSONB, nullable=False),
    Column("outcome", Text, nullable=False),
    # A refusal's text, or what was changed.
    Column("detail", Text),
    PrimaryKeyConstraint("requested_at", "request_id", name="sync_requests_pkey"),
    Index("sync_requests_key", "partition_key", "requested_at"),
    postgresql_partition_by="RANGE (requested_at)",
)

# What happens to jobs that do not simply succeed. Written in the same statement as the change of state.
sync_job_events = Table(
    "sync_job_events",
    metadata,
    Column("happened_at", UTC_TIME, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("run_id", Uuid),
    Column("user_id", Uuid, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("event", Text, nullable=False),
    Column("reason_class", Text),
    Column("reason_fingerprint", BigInteger),
    Column("error_message", Text),
    # Only so that there is a key: the other columns may repeat.
    Column("event_id", Uuid, nullable=False, server_default=text("gen_random_uuid()")),
    PrimaryKeyConstraint("job_id", "happened_at", "event_id", name="sync_job_events_pkey"),
    Index("sync_job_events_time", "happened_at", postgresql_using="brin"),
    postgresql_partition_by="RANGE (happened_at)",
)

# Retries that are still walking through the jobs of their run; reconcile continues one that was left.
sync_retries = Table(
    "sync_retries",
    metadata,
    Column("request_id", Uuid, primary_key=True),
    Column("run_id", Uuid, ForeignKey("sync_runs.run_id"), nullable=False),
    # Jobs that ended later are left alone, so that a handler that still fails makes no loop.
    Column("asked_at", UTC_TIME, nullable=False),
    Column("wanted", Text, nullable=False),
    Column("error_like", Text),
    # NULL: any user.
    Column("only_users", ARRAY(Uuid)),
    # How many more jobs; NULL: all.
    Column("jobs_left", BigInteger),
    # The cursor: the jobs of users up to this id have been looked at.
    Column("walked_through", Uuid),
    Column("jobs", BigInteger, nullable=False, server_default=text("0")),
    Column("ended_at", UTC_TIME),
    CheckConstraint("wanted IN ('failed', 'skipped', 'cancelled')", name="sync_retries_wanted_check"),
    Index("sync_retries_open", "asked_at", postgresql_where=text("ended_at IS NULL")),
)

# Counts of a run that has not ended, once a minute, for rates. `skipped` contains `cancelled`.
sync_run_samples = Table(
    "sync_run_samples",
    metadata,
    Column("run_id", Uuid, nullable=False),
    Column("sampled_at", UTC_TIME, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),
    Column("running", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    PrimaryKeyConstraint("run_id", "sampled_at", name="sync_run_samples_pkey"),
    Index("sync_run_samples_time", "sampled_at"),
)

sync_queue_samples = Table(
    "sync_queue_samples",
    metadata,
    Column("queue", Text, nullable=False),
    Column("sampled_at", UTC_TIME, nullable=False),
    Column("messages", BigInteger, nullable=False),
    PrimaryKeyConstraint("queue", "sampled_at", name="sync_queue_samples_pkey"),
    Index("sync_queue_samples_time", "sampled_at"),
)

STOPPED_RUNS = "sync_stopped_runs"
"""The view by which workers learn which runs are paused or cancelled: run_id, cancelled."""
