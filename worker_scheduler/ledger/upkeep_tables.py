"""The tables of maintenance: locks, due days, tasks, probe messages, broker epochs, reconcile's passes."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from worker_scheduler.ledger.tables import UTC_TIME, metadata

sync_locks = Table(
    "sync_locks",
    metadata,
    Column("lock_id", BigInteger, primary_key=True, autoincrement=False),
    Column("holder", Uuid, nullable=False),
    Column("partition_key", Text, nullable=False),
    Column("acquired_at", UTC_TIME, nullable=False),
    Column("leased_until", UTC_TIME, nullable=False),
)

# One row: earlier slots are not due, because this scheduler was not deployed yet or had another calendar.
sync_origin = Table(
    "sync_origin",
    metadata,
    Column("since", UTC_TIME, nullable=False),
    # The calendar by which days are due since then; NULL until the first trigger.
    Column("cron", Text),
    Column("timezone", Text),
    # The key, so that there is one row only, and a publication of all tables lets it be updated.
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    CheckConstraint("only_row", name="sync_origin_only_row_check"),
)

# Which partition a Celery task works on. A task that is delivered again, perhaps on another day, keeps it.
sync_tasks = Table(
    "sync_tasks",
    metadata,
    Column("task_id", Text, primary_key=True),
    Column("partition_key", Text, nullable=False),
    Column("created_at", UTC_TIME, nullable=False),
)

# Messages that tell how far a queue has been taken: everything published before a probe that has arrived
# has been taken, too.
sync_probes = Table(
    "sync_probes",
    metadata,
    Column("probe_id", Uuid, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("sent_at", UTC_TIME, nullable=False),
    Column("arrived_at", UTC_TIME),
)

# Waiting jobs whose message has left the queue. Most of these messages are with a worker or on their way to
# one; those that are nowhere for long enough are lost.
sync_suspects = Table(
    "sync_suspects",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    Column("queue", Text, nullable=False),
    # The batch with which its message was published; NULL: it was published on its own.
    Column("batch", Integer),
    # The job's attempt when it was suspected: a later one shows that the message was there.
    Column("attempt", SmallInteger, nullable=False),
    Column("suspected_at", UTC_TIME, nullable=False),
    # When a look at the messages that workers hold did not find it. NULL: nobody has looked since.
    Column("missed_at", UTC_TIME),
    Index("sync_suspects_run", "run_id", "job_id"),
)

# The broker epochs that reconcile has seen, and where. One that comes back shows that two processes work
# with different brokers.
sync_broker_epochs = Table(
    "sync_broker_epochs",
    metadata,
    Column("epoch", Uuid, primary_key=True),
    Column("broker", Text, nullable=False),
    Column("seen_from", UTC_TIME, nullable=False),
    Column("seen_last", UTC_TIME, nullable=False),
    # The number of the last look that found it: the order of looks, whatever the clocks say.
    Column("look", BigInteger, nullable=False),
    # When it was found again after another epoch had been found.
    Column("returned_at", UTC_TIME),
    # When a pass of reconcile found it; ticks look, too.
    Column("reconciled_at", UTC_TIME),
)

# When the last pass that a message asked for began and ended; of several messages only one makes a pass.
sync_passes = Table(
    "sync_passes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("begun_at", UTC_TIME, nullable=False),
    Column("ended_at", UTC_TIME),
)
