"""SQL of planning: one chunk of users becomes jobs and batches, in one transaction.

The run's row is locked meanwhile and holds the cursor, so planners of one run that meet (the tick's
lock switched off, or its lease run out) share the work; the unique index makes them correct.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from worker_scheduler.ledger.users import UsersRelation


@dataclass(frozen=True)
class Chunk:
    """What planning one chunk did. done: there was nobody left after it."""

    jobs: int
    batches: int
    done: bool


_LOCK_RUN = text(
    """
    SELECT planned_through, batches, selected_user_ids IS NOT NULL AS chosen
    FROM sync_runs WHERE run_id = :run_id AND state = 'PLANNING' FOR UPDATE
    """
)

_ADVANCE = text(
    """
    UPDATE sync_runs SET
        planned_through = coalesce(:planned_through, planned_through),
        jobs = jobs + :jobs,
        batches = batches + :batches,
        state = CASE WHEN :done THEN 'DISPATCHING' ELSE 'PLANNING' END,
        planned_at = CASE WHEN :done THEN CAST(:now AS timestamptz) END
    WHERE run_id = :run_id AND state = 'PLANNING'
    """
)

_AFTER_CURSOR = "AND u.id > :planned_through"
_CHOSEN = "AND u.id = ANY((SELECT selected_user_ids FROM sync_runs WHERE run_id = :run_id)::uuid[])"
# Rows of an older scheduler have no run, so the unique index does not know them.
_NOT_IN_OLDER_ROWS = """
    AND NOT EXISTS (SELECT FROM sync_jobs o WHERE o.partition_key = :partition_key
                    AND o.run_id IS NULL AND o.user_id = u.id)
"""
_OLDER_ROWS = text(
    "SELECT EXISTS (SELECT FROM sync_jobs WHERE partition_key = :partition_key AND run_id IS NULL)"
)

# The unsent rest of a chunk that another tick planned in the meantime conflicts and is left out;
# the batches are cut from what was really inserted.
_INSERT_CHUNK = """
    WITH page AS MATERIALIZED (
        SELECT p.id AS user_id, p.github_login, row_number() OVER (ORDER BY p.id) AS n
        FROM (SELECT u.id, u.github_login FROM {relation} u
              WHERE u.id IS NOT NULL {conditions}
              ORDER BY u.id LIMIT :limit) p
    ), inserted AS (
        INSERT INTO sync_jobs (job_id, user_id, github_login, status, backfill_days, triggered_by,
                               partition_key, created_at, run_id)
        SELECT CAST(:id_prefix || lpad(to_hex(n), 8, '0') AS uuid), user_id, github_login,
               'PENDING', r.backfill_days, r.triggered_by, r.partition_key, :now, r.run_id
        FROM page, sync_runs r WHERE r.run_id = :run_id
        ON CONFLICT (run_id, user_id) WHERE run_id IS NOT NULL DO NOTHING
        RETURNING job_id, user_id
    ), numbered AS (
        SELECT job_id, user_id, (row_number() OVER (ORDER BY job_id) - 1) / :batch_size AS slice
        FROM inserted
    ), batched AS (
        INSERT INTO sync_batches (run_id, number, first_user_id, last_user_id,
                                  first_job_id, last_job_id, jobs, group_id)
        SELECT :run_id, :first_number + slice,
               (array_agg(user_id ORDER BY job_id))[1], (array_agg(user_id ORDER BY job_id DESC))[1],
               (array_agg(job_id ORDER BY job_id))[1], (array_agg(job_id ORDER BY job_id DESC))[1],
               count(*), gen_random_uuid()
        FROM numbered GROUP BY slice
        RETURNING jobs
    )
    SELECT (SELECT count(*) FROM page) AS users,
           (SELECT user_id FROM page ORDER BY n DESC LIMIT 1) AS planned_through,
           (SELECT coalesce(sum(jobs), 0) FROM batched) AS jobs,
           (SELECT count(*) FROM batched) AS batches
"""


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
    now: datetime,
) -> Chunk:
    """Writes the jobs and batches of the next `limit` users, and moves the run's cursor past them.

    skip_older_rows_of: the partition whose older rows count as jobs; None where there are none.
    """
    run = connection.execute(_LOCK_RUN, {"run_id": run_id}).one_or_none()
    if run is None:
        return Chunk(jobs=0, batches=0, done=True)  # another planner came to the end first
    conditions = " ".join(
        [
            _AFTER_CURSOR if run.planned_through is not None else "",
            _CHOSEN if run.chosen else "",
            _NOT_IN_OLDER_ROWS if skip_older_rows_of is not None else "",
        ]
    )
    parameters = {
        "run_id": run_id,
        "limit": limit,
        "batch_size": batch_size,
        "first_number": run.batches,
        "id_prefix": _id_prefix(now),
        "now": now,
    }
    if run.planned_through is not None:
        parameters["planned_through"] = run.planned_through
    if skip_older_rows_of is not None:
        parameters["partition_key"] = skip_older_rows_of
    done_now = connection.execute(
        text(_INSERT_CHUNK.format(relation=relation.sql, conditions=conditions)), parameters
    ).one()
    done = done_now.users < limit
    connection.execute(
        _ADVANCE,
        {
            "run_id": run_id,
            "planned_through": done_now.planned_through,
            "jobs": done_now.jobs,
            "batches": done_now.batches,
            "done": done,
            "now": now,
        },
    )
    return Chunk(jobs=int(done_now.jobs), batches=int(done_now.batches), done=done)


def _id_prefix(now: datetime) -> str:
    """The first 24 hex digits of a chunk's job ids; the last 8 count its rows.

    Together a UUID version 7 (RFC 9562): time, version, 12 and 30 random bits. Made here, since
    uuidv7() begins with PostgreSQL 18; ids that rise keep the primary key's pages full and a
    batch's rows together.
    """
    milliseconds = int(now.timestamp() * 1000)
    variant = 0x80000000 | secrets.randbits(30)
    return f"{milliseconds:012x}7{secrets.randbits(12):03x}{variant:08x}"
