"""Adds to each job how many attempts it may have, and how often a stopped worker interrupted it.

`attempt` counts up for ever, since it tells one attempt from the next. How many are allowed stands beside
it, so that an interruption by a deployment, or somebody who wants a job tried again, can allow one more.

It may run while workers of version 0004 run jobs: they do not use the new columns.
This revision is frozen: it reads no table, enum or number of the present code.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

# attempts_allowed: NULL means SYNC_MAX_ATTEMPTS. Neither column makes Postgres rewrite the table.
ATTEMPTS = """
ALTER TABLE sync_jobs
    ADD COLUMN attempts_allowed smallint,
    ADD COLUMN interruptions smallint NOT NULL DEFAULT 0
"""

# Whoever may move jobs may count for them.
GRANTS = """
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT r.rolname FROM pg_roles r
        WHERE NOT r.rolsuper AND r.rolname !~ '^pg_'
            AND r.oid <> (SELECT relowner FROM pg_class WHERE oid = 'sync_runs'::regclass)
            AND has_column_privilege(r.oid, 'sync_jobs', 'attempt', 'UPDATE')
    LOOP
        EXECUTE format('GRANT UPDATE (attempts_allowed, interruptions) ON sync_jobs TO %I', given.rolname);
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Adds the columns, and gives those who move jobs their rights on them."""
    op.execute(ATTEMPTS)
    op.execute(GRANTS)


def downgrade() -> None:
    """Raises NotImplementedError: a downgrade would drop the ledger."""
    raise NotImplementedError("the ledger cannot be downgraded; restore a backup instead")
