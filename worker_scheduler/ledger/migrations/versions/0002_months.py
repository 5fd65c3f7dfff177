"""Jobs in monthly partitions, so that a finished month can be dropped in one statement.

Besides: in which life of the broker's data a job went out alone, and the calendar by which days are due.

A table of our own becomes the default partition, not a row of it written anew. What an older scheduler
left, or what other objects of the database hang on, stays one table: `partitioning.py` says when.
"""

from alembic import op

from worker_scheduler.ledger.migrations.partitioning import ADD_MONTH, partition_sync_jobs

revision = "0002"
down_revision = "0001"

RUNS = """
ALTER TABLE sync_runs
    ADD COLUMN jobs_before bigint NOT NULL DEFAULT 0,
    ADD COLUMN pruned_at timestamptz
"""

JOBS = """
ALTER TABLE sync_jobs ADD COLUMN republished_in uuid
"""

REPUBLISHED = """
CREATE INDEX sync_jobs_republished ON sync_jobs (run_id, republished_in)
    WHERE republished_in IS NOT NULL AND status = 'PENDING'
"""

ORIGIN = """
ALTER TABLE sync_origin ADD COLUMN cron text, ADD COLUMN timezone text
"""


def upgrade() -> None:
    """Adds the columns, divides the table where it may, and makes the function that adds a month."""
    op.execute(RUNS)
    op.execute(ORIGIN)
    op.execute(JOBS)
    op.execute(REPUBLISHED)
    partition_sync_jobs(op.get_bind())
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    op.execute(ADD_MONTH.replace("{schema}", schema))
    op.execute("REVOKE ALL ON FUNCTION sync_jobs_add_month(text, uuid, uuid) FROM PUBLIC")


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("the ledger is not thrown away; restore a backup instead")
