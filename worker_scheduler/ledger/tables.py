"""The tables as SQLAlchemy sees them, and the states; a test holds the migrations against them."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP

UTC_TIME = TIMESTAMP(timezone=True)
metadata = MetaData()


class JobStatus(StrEnum):
    """The states of a job; docs/states.md has who moves it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class RunState(StrEnum):
    """The states of a run; docs/states.md has who moves it."""

    PLANNING = "PLANNING"
    DISPATCHING = "DISPATCHING"
    ENQUEUED = "ENQUEUED"
    FINISHED = "FINISHED"
    MISSED = "MISSED"


class Kind(StrEnum):
    """What rings a run; also the name of the queue that its jobs go to."""

    DAILY = "daily"
    BACKFILL = "backfill"


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


sync_runs = Table(
    "sync_runs",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("partition_key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("triggered_by", Text, nullable=False),
    Column("requested_by", Text),
    Column("backfill_days", Integer),
    # NULL: every user there is when the chunk is planned.
    Column("selected_user_ids", ARRAY(Uuid)),
    Column("slot", UTC_TIME),
    Column("state", Text, nullable=False),
    # Planning's cursor: users up to here have their jobs. NULL: none yet.
    Column("planned_through", Uuid),
    # A tick is at work on it until then, and says so by its heartbeat. NULL: nobody is.
    Column("leased_until", UTC_TIME),
    Column("jobs", BigInteger, nullable=False, server_default=text("0")),
    Column("batches", Integer, nullable=False, server_default=text("0")),
    # Known once the run is FINISHED.
    Column("completed", BigInteger),
    Column("failed", BigInteger),
    Column("skipped", BigInteger),
    Column("created_at", UTC_TIME, nullable=False),
    Column("planned_at", UTC_TIME),
    Column("enqueued_at", UTC_TIME),
    Column("finished_at", UTC_TIME),
    # Of `jobs`, when the run was opened last. 0: no user of it can have a job yet.
    Column("jobs_before", BigInteger, nullable=False, server_default=text("0")),
    # Its jobs and batches are gone since then.
    Column("pruned_at", UTC_TIME),
    UniqueConstraint("partition_key", name="sync_runs_partition_key_key"),
    CheckConstraint(_one_of("kind", Kind), name="sync_runs_kind_check"),
    CheckConstraint(_one_of("state", RunState), name="sync_runs_state_check"),
)

sync_batches = Table(
    "sync_batches",
    metadata,
    Column("run_id", Uuid, ForeignKey("sync_runs.run_id"), nullable=False),
    Column("number", Integer, nullable=False),
    # For the reader: which users are in it.
    Column("first_user_id", Uuid, nullable=False),
    Column("last_user_id", Uuid, nullable=False),
    # For dispatch: job ids rise within a chunk, so a range of them is the batch, and nothing else,
    # even where a later pass adds users in between.
    Column("first_job_id", Uuid, nullable=False),
    Column("last_job_id", Uuid, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("group_id", Uuid, nullable=False),
    Column("generation", Integer, nullable=False, server_default=text("0")),
    Column("claimed_by", Uuid),
    Column("claimed_until", UTC_TIME),
    Column("enqueued_at", UTC_TIME),
    # The life of the broker's data in which the messages went out; NULL where it cannot be seen.
    Column("broker_epoch", Uuid),
    PrimaryKeyConstraint("run_id", "number", name="sync_batches_pkey"),
    CheckConstraint("jobs > 0", name="sync_batches_jobs_check"),
    Index("sync_batches_unsent", "run_id", "number", postgresql_where=text("enqueued_at IS NULL")),
)

sync_jobs = Table(
    "sync_jobs",
    metadata,
    # The key of each partition; one of the whole would have to hold the run's id.
    Column("job_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("github_login", Text),
    Column("status", Text, nullable=False, server_default=text("'PENDING'")),
    Column("error_message", Text),
    Column("backfill_days", Integer),
    Column("triggered_by", Text, nullable=False),
    Column("partition_key", Text, nullable=False),
    Column("created_at", UTC_TIME, nullable=False, server_default=text("CURRENT_TIMESTAMP")),
    Column("started_at", UTC_TIME),
    Column("completed_at", UTC_TIME),
    # NULL: a row that an older scheduler left. No foreign key: its check would cost more than the
    # row, and the planner writes jobs only under the lock of their run.
    Column("run_id", Uuid),
    Column("attempt", SmallInteger, nullable=False, server_default=text("0")),
    # RUNNING: its worker is believed alive until then. PENDING: reconcile is publishing it anew.
    Column("leased_until", UTC_TIME),
    # PENDING, and to be published anew from then on; NULL: its message is out, or its batch unsent.
    Column("not_before", UTC_TIME),
    # The life of the broker's data in which it was published anew last, alone; NULL: its batch's message
    # is its own.
    Column("republished_in", Uuid),
    CheckConstraint(_one_of("status", JobStatus), name="sync_jobs_status_check"),
    # One job per user per partition: a run is a partition. Partial, since an older scheduler's rows
    # may repeat a user.
    Index(
        "sync_jobs_one_job_per_user",
        "run_id",
        "user_id",
        unique=True,
        postgresql_where=text("run_id IS NOT NULL"),
    ),
    # What reconcile asks for; small, since most jobs are final most of the time.
    Index("sync_jobs_open", "run_id", "job_id", postgresql_where=text("status IN ('PENDING', 'RUNNING')")),
    Index("sync_jobs_running", "leased_until", postgresql_where=text("leased_until IS NOT NULL")),
    Index("sync_jobs_delayed", "not_before", postgresql_where=text("not_before IS NOT NULL")),
    Index(
        "sync_jobs_republished",
        "run_id",
        "republished_in",
        postgresql_where=text("republished_in IS NOT NULL AND status = 'PENDING'"),
    ),
    # For operators' queries by partition: a partition's rows lie together on disk, so a few bytes a
    # megabyte find them, and neither inserts nor changes of state pay for it.
    Index(
        "sync_jobs_partition",
        "partition_key",
        "created_at",
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    ),
    # By months, since a run's id begins with a time; see months.py. Whole, where an older scheduler has
    # made it.
    postgresql_partition_by="RANGE (run_id)",
)

sync_locks = Table(
    "sync_locks",
    metadata,
    Column("lock_id", BigInteger, primary_key=True, autoincrement=False),
    Column("holder", Uuid, nullable=False),
    Column("partition_key", Text, nullable=False),
    Column("acquired_at", UTC_TIME, nullable=False),
    Column("leased_until", UTC_TIME, nullable=False),
)

# One row: slots before it belong to a time in which nobody had deployed this scheduler, or in which it
# had another calendar.
sync_origin = Table(
    "sync_origin",
    metadata,
    Column("since", UTC_TIME, nullable=False),
    # The calendar by which days are due since then; NULL until the first look.
    Column("cron", Text),
    Column("timezone", Text),
)
