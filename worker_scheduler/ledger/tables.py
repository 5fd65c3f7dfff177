"""The tables as SQLAlchemy describes them, and the states; a test compares them with the migrations."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
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
    """The states of a job; docs/states.md lists every change."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class RunState(StrEnum):
    """The states of a run; docs/states.md lists every change."""

    PLANNING = "PLANNING"
    DISPATCHING = "DISPATCHING"
    ENQUEUED = "ENQUEUED"
    FINISHED = "FINISHED"
    MISSED = "MISSED"


class Kind(StrEnum):
    """The kind of a run: which of the two commands makes it."""

    DAILY = "daily"
    BACKFILL = "backfill"

    @property
    def queue(self) -> str:
        """The queue for the jobs of such a run."""
        return self.value


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


def paused_columns() -> tuple[Column[Any], ...]:
    """What says that something is paused: paused_at is NULL if it is not."""
    return (
        Column("paused_at", UTC_TIME),
        Column("paused_by", Text),
        Column("pause_reason", Text),
        Column("paused_until", UTC_TIME),
    )


sync_runs = Table(
    "sync_runs",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("partition_key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("triggered_by", Text, nullable=False),
    Column("requested_by", Text),
    Column("backfill_days", Integer),
    # Whether only the users in sync_selected_users are planned; otherwise every user who exists then.
    Column("chosen_users", Boolean, nullable=False, server_default=text("false")),
    Column("slot", UTC_TIME),
    Column("state", Text, nullable=False),
    # The cursor of planning: users up to this id have their jobs. NULL: no user yet.
    Column("planned_through", Uuid),
    # Until then a process is planning or dispatching it and extends this by a heartbeat. NULL: none is.
    Column("leased_until", UTC_TIME),
    Column("jobs", BigInteger, nullable=False, server_default=text("0")),
    Column("batches", Integer, nullable=False, server_default=text("0")),
    # Set once the run is FINISHED.
    Column("completed", BigInteger),
    Column("failed", BigInteger),
    Column("skipped", BigInteger),
    Column("created_at", UTC_TIME, nullable=False),
    Column("planned_at", UTC_TIME),
    Column("enqueued_at", UTC_TIME),
    Column("finished_at", UTC_TIME),
    # The value of `jobs` when the run was last opened. 0: no user can have a job yet.
    Column("jobs_before", BigInteger, nullable=False, server_default=text("0")),
    # When its jobs and batches were deleted.
    Column("pruned_at", UTC_TIME),
    # How often in a row reconcile could not plan or dispatch it, and when it tries again.
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("retry_after", UTC_TIME),
    # What somebody wants, beside `state`, which says how far the run is. NULL paused_until: until `resume`.
    *paused_columns(),
    # Parked jobs are released since then. NULL: none is left.
    Column("resumed_at", UTC_TIME),
    Column("cancelled_at", UTC_TIME),
    Column("cancelled_by", Text),
    Column("cancel_reason", Text),
    # The run is paused when more than this percentage of its jobs fails. NULL: never.
    Column("stop_on_failures", SmallInteger),
    # Why a MISSED day has no run; NULL: nothing triggered it in time.
    Column("missed_because", Text),
    # When the feeder of backfills last sent a part of it.
    Column("fed_at", UTC_TIME),
    # Of `skipped`: the jobs that were cancelled. Set once the run is FINISHED.
    Column("cancelled", BigInteger),
    # As they were when the run was FINISHED for the first time; later ticks and retries change the others.
    Column("first_finished_at", UTC_TIME),
    Column("first_completed", BigInteger),
    Column("first_failed", BigInteger),
    Column("first_skipped", BigInteger),
    UniqueConstraint("partition_key", name="sync_runs_partition_key_key"),
    CheckConstraint(_one_of("kind", Kind), name="sync_runs_kind_check"),
    CheckConstraint(_one_of("state", RunState), name="sync_runs_state_check"),
    CheckConstraint("stop_on_failures BETWEEN 1 AND 100", name="sync_runs_stop_on_failures_check"),
    # For the view sync_stopped_runs, which workers read once a second.
    Index(
        "sync_runs_stopped",
        "run_id",
        postgresql_where=text(
            "state NOT IN ('FINISHED', 'MISSED') AND (cancelled_at IS NOT NULL OR paused_at IS NOT NULL)"
        ),
    ),
)

sync_selected_users = Table(
    "sync_selected_users",
    metadata,
    # There is no foreign key: the users are written first, so that the run's row is not locked for long.
    Column("run_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    PrimaryKeyConstraint("run_id", "user_id", name="sync_selected_users_pkey"),
)

sync_batches = Table(
    "sync_batches",
    metadata,
    Column("run_id", Uuid, ForeignKey("sync_runs.run_id"), nullable=False),
    Column("number", Integer, nullable=False),
    # For people: which users are in the batch.
    Column("first_user_id", Uuid, nullable=False),
    Column("last_user_id", Uuid, nullable=False),
    # For dispatch: job ids rise within a chunk, so a range of them is exactly the batch, even if a later
    # tick adds users in between.
    Column("first_job_id", Uuid, nullable=False),
    Column("last_job_id", Uuid, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("group_id", Uuid, nullable=False),
    Column("generation", Integer, nullable=False, server_default=text("0")),
    Column("claimed_by", Uuid),
    Column("claimed_until", UTC_TIME),
    Column("enqueued_at", UTC_TIME),
    # The broker epoch in which the messages were published; NULL if the broker shows none.
    Column("broker_epoch", Uuid),
    PrimaryKeyConstraint("run_id", "number", name="sync_batches_pkey"),
    CheckConstraint("jobs > 0", name="sync_batches_jobs_check"),
    Index("sync_batches_unsent", "run_id", "number", postgresql_where=text("enqueued_at IS NULL")),
)

sync_jobs = Table(
    "sync_jobs",
    metadata,
    # The primary key of each partition; one of the whole table would have to contain the run's id.
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
    # NULL: a row that an older scheduler left. There is no foreign key: its check would cost more than the
    # row, and the planner writes jobs only while it locks their run.
    Column("run_id", Uuid),
    Column("attempt", SmallInteger, nullable=False, server_default=text("0")),
    # RUNNING: its worker is believed alive until then. PENDING: reconcile is publishing it again.
    Column("leased_until", UTC_TIME),
    # PENDING: to be published again from then on. NULL: its message is out, or its batch is unsent.
    Column("not_before", UTC_TIME),
    # The broker epoch in which it was last published on its own; NULL: it was published with its batch, or
    # will be.
    Column("republished_in", Uuid),
    # When it was last published on its own. NULL: it was published with its batch, or will be.
    Column("republished_at", UTC_TIME),
    # How many attempts it may have. NULL: SYNC_MAX_ATTEMPTS.
    Column("attempts_allowed", SmallInteger),
    # How many attempts were cut short because their worker was stopped.
    Column("interruptions", SmallInteger, nullable=False, server_default=text("0")),
    # SKIPPED, because its run was cancelled.
    Column("cancelled_at", UTC_TIME),
    # FAILED, SKIPPED: why, to be grouped by; see reasons.py. NULL in jobs of earlier versions.
    Column("reason_class", Text),
    Column("reason_fingerprint", BigInteger),
    CheckConstraint(_one_of("status", JobStatus), name="sync_jobs_status_check"),
    # One job per user per partition: each partition has one run. The index is partial, since an older
    # scheduler's rows may repeat a user.
    Index(
        "sync_jobs_one_job_per_user",
        "run_id",
        "user_id",
        unique=True,
        postgresql_where=text("run_id IS NOT NULL"),
    ),
    # For reconcile; small, since most jobs are final most of the time.
    Index("sync_jobs_open", "run_id", "job_id", postgresql_where=text("status IN ('PENDING', 'RUNNING')")),
    Index("sync_jobs_running", "leased_until", postgresql_where=text("leased_until IS NOT NULL")),
    Index("sync_jobs_delayed", "not_before", postgresql_where=text("not_before IS NOT NULL")),
    Index(
        "sync_jobs_republished",
        "run_id",
        "republished_in",
        postgresql_where=text("republished_in IS NOT NULL AND status = 'PENDING'"),
    ),
    # Jobs that did not complete, by the reason. Only the end of such a job changes it.
    Index(
        "sync_jobs_reasons",
        "run_id",
        "reason_class",
        "reason_fingerprint",
        postgresql_where=text("reason_class IS NOT NULL"),
    ),
    # For operators' queries by partition: the rows of a partition lie together on disk, so a few bytes per
    # megabyte find them, and neither inserts nor changes of state pay for it.
    Index(
        "sync_jobs_partition",
        "partition_key",
        "created_at",
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    ),
    # By months, since a run's id begins with a time (see months.py). A table that an older scheduler
    # created is not divided.
    postgresql_partition_by="RANGE (run_id)",
)
