"""SQL of planning: one chunk of users becomes jobs and batches, in one transaction.

The run's row is locked meanwhile and holds the cursor, so planners of one run that meet (the tick's
lock switched off, or its lease run out) share the work; the unique index makes them correct.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.errors import UniqueViolation
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from worker_scheduler.ledger import months
from worker_scheduler.ledger.users import UsersRelation


@dataclass(frozen=True)
class Chunk:
    """What planning one chunk did. done: there was nobody left after it."""

    jobs: int
    batches: int
    done: bool


_LOCK_RUN = text(
    """
    SELECT planned_through, batches, selected_user_ids IS NOT NULL AS chosen, jobs_before
    FROM sync_runs WHERE run_id = :run_id AND state = 'PLANNING' FOR UPDATE
    """
)

_AFTER_CURSOR = "AND u.id > :planned_through"
_CHOSEN = "AND u.id = ANY((SELECT selected_user_ids FROM sync_runs WHERE run_id = :run_id)::uuid[])"
# Where the run had jobs before, a page is of users who have none: else a tick that finds nothing new
# would try to insert every job again. The cursor is named on this side, too; Postgres does not see that
# it follows.
_NOT_IN_RUN = """
    AND NOT EXISTS (SELECT FROM sync_jobs j WHERE j.run_id = :run_id AND j.user_id = u.id
                    {after_cursor})
"""
# Rows of an older scheduler have no run, so the unique index does not know them.
_NOT_IN_OLDER_ROWS = """
    AND NOT EXISTS (SELECT FROM sync_jobs o WHERE o.partition_key = :partition_key
                    AND o.run_id IS NULL AND o.user_id = u.id)
"""
_OLDER_ROWS = text(
    "SELECT EXISTS (SELECT FROM sync_jobs WHERE partition_key = :partition_key AND run_id IS NULL)"
)

# The batches are cut from what is really inserted: where nothing can conflict, that is the page.
_INSERT_CHUNK = """
    WITH page AS MATERIALIZED (
        SELECT CAST(:id_prefix || lpad(to_hex(n), 8, '0') AS uuid) AS job_id, id AS user_id, github_login, n
        FROM (SELECT p.id, p.github_login, row_number() OVER (ORDER BY p.id) AS n
              FROM (SELECT u.id, u.github_login FROM {relation} u
                    WHERE u.id IS NOT NULL {conditions}
                    ORDER BY u.id LIMIT :limit) p) numbered
    ), inserted AS (
        INSERT INTO sync_jobs (job_id, user_id, github_login, status, backfill_days, triggered_by,
                               partition_key, created_at, run_id)
        SELECT job_id, user_id, github_login, 'PENDING', r.backfill_days, r.triggered_by,
               r.partition_key, :now, r.run_id
        FROM page, sync_runs r WHERE r.run_id = :run_id
        {on_conflict}
    ), planned AS (
        {planned}
    ), batched AS (
        INSERT INTO sync_batches (run_id, number, first_user_id, last_user_id,
                                  first_job_id, last_job_id, jobs, group_id)
        SELECT :run_id, :first_number + (f.n - 1) / :batch_size, f.user_id, l.user_id,
               f.job_id, l.job_id, l.n - f.n + 1, gen_random_uuid()
        FROM planned f JOIN planned l ON l.n = least(f.n + :batch_size - 1, (SELECT count(*) FROM planned))
        WHERE (f.n - 1) % :batch_size = 0
        RETURNING jobs
    ), chunk AS (
        SELECT (SELECT count(*) FROM page) < :limit AS done,
               (SELECT user_id FROM page ORDER BY n DESC LIMIT 1) AS planned_through,
               (SELECT coalesce(sum(jobs), 0) FROM batched) AS jobs,
               (SELECT count(*) FROM batched) AS batches
    ), advanced AS (
        UPDATE sync_runs r SET
            planned_through = coalesce(c.planned_through, r.planned_through),
            jobs = r.jobs + c.jobs,
            batches = r.batches + c.batches,
            state = CASE WHEN c.done THEN 'DISPATCHING' ELSE 'PLANNING' END,
            planned_at = CASE WHEN c.done THEN CAST(:now AS timestamptz) END
        FROM chunk c WHERE r.run_id = :run_id AND r.state = 'PLANNING'
    )
    SELECT jobs, batches, done FROM chunk
"""


class SomeHaveJobs(Exception):
    """A user of the page has a job of the run, or is in the page twice. Nothing was written."""


@dataclass(frozen=True)
class Insert:
    """How a page of users becomes jobs: two parts of the statement."""

    on_conflict: str
    planned: str


WHOLE_PAGE = Insert(on_conflict="", planned="SELECT job_id, user_id, n FROM page")
"""A quarter cheaper (4.1 and 5.2 µs a row, PostgreSQL 18); the unique index says where it does not do."""

WHO_HAS_NONE = Insert(
    on_conflict="""ON CONFLICT (run_id, user_id) WHERE run_id IS NOT NULL DO NOTHING
        RETURNING job_id, user_id""",
    planned="SELECT job_id, user_id, row_number() OVER (ORDER BY job_id) AS n FROM inserted",
)


def has_older_rows(connection: Connection, partition_key: str) -> bool:
    """Whether an older scheduler has left rows in this partition."""
    return bool(connection.execute(_OLDER_ROWS, {"partition_key": partition_key}).scalar_one())


def plan_chunk(
    connection: Connection,
    *,
    run_id: UUID,
    relation: UsersRelation,
    skip_older_rows_of: str | None,
    limit: int,
    batch_size: int,
    insert: Insert,
    now: datetime,
) -> Chunk:
    """Writes the jobs and batches of the next `limit` users, and moves the run's cursor past them.

    skip_older_rows_of: the partition whose older rows count as jobs; None where there are none.
    Raises SomeHaveJobs with WHOLE_PAGE alone; the transaction can only be rolled back then.
    """
    run = connection.execute(_LOCK_RUN, {"run_id": run_id}).one_or_none()
    if run is None:
        return Chunk(jobs=0, batches=0, done=True)  # another planner came to the end first
    after_cursor = "" if run.planned_through is None else "AND j.user_id > :planned_through"
    conditions = " ".join(
        [
            _AFTER_CURSOR if run.planned_through is not None else "",
            _CHOSEN if run.chosen else "",
            _NOT_IN_RUN.format(after_cursor=after_cursor) if run.jobs_before else "",
            _NOT_IN_OLDER_ROWS if skip_older_rows_of is not None else "",
        ]
    )
    parameters = {
        "run_id": run_id,
        "limit": limit,
        "batch_size": batch_size,
        "first_number": run.batches,
        # The last 8 digits count the chunk's rows: ids that rise keep the primary key's pages full and a
        # batch's rows together.
        "id_prefix": months.uuid_prefix(months.within(months.month_of(run_id), now)),
        "now": now,
    }
    if run.planned_through is not None:
        parameters["planned_through"] = run.planned_through
    if skip_older_rows_of is not None:
        parameters["partition_key"] = skip_older_rows_of
    statement = _INSERT_CHUNK.format(
        relation=relation.sql,
        conditions=conditions,
        on_conflict=insert.on_conflict,
        planned=insert.planned,
    )
    try:
        chunk = connection.execute(text(statement), parameters).one()
    except IntegrityError as error:
        if insert is WHOLE_PAGE and isinstance(error.orig, UniqueViolation):
            raise SomeHaveJobs from error
        raise
    return Chunk(jobs=int(chunk.jobs), batches=int(chunk.batches), done=chunk.done)
