"""SQL about RUNNING jobs whose lease has run out, for the rule dead_workers.

What a look has seen is in pages. A page has the attempts and leases of up to 1,000 jobs, as the JSON text
in which Postgres has packed them, so that 100,000 of them take 8 MB. Every later statement leaves out what
has changed since, and what another transaction has locked: no worker could renew a lease in such a row.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import NewType

from sqlalchemy import Connection, text

from worker_scheduler import reasons
from worker_scheduler.ledger.events import JobEvent, noted
from worker_scheduler.ledger.lease_sql import has_run_out, lasts_too_long

Page = NewType("Page", str)

_JOBS_PER_PAGE = 1000
_JOBS_PER_LOOK = 100_000

_PACKED = "CAST(json_agg(json_build_array(job_id, attempt, leased_until)) AS text)"


# `status || ''` hides the column from the planner, which with stale statistics expects no open jobs and
# picks the wrong index: the one over open jobs instead of the one over leases. That one has an order.
def _expired(condition: str) -> str:
    return f"""
        (SELECT job_id, attempt, leased_until FROM sync_jobs
         WHERE status || '' = 'RUNNING' AND {condition} ORDER BY leased_until LIMIT {_JOBS_PER_LOOK})
    """


_EXPIRED = text(
    f"""
    SELECT {_PACKED}
    FROM (SELECT job_id, attempt, leased_until, (row_number() OVER () - 1) / {_JOBS_PER_PAGE} AS page
          FROM ({_expired(has_run_out("leased_until"))} UNION ALL
                {_expired(lasts_too_long("leased_until"))}
                LIMIT {_JOBS_PER_LOOK}) expired) numbered
    GROUP BY page
    """
)

# To start parallel workers takes up to 0.2 s on a busy machine; without statistics the planner wants them
# for what then finds nothing.
_ALONE = text("SET LOCAL max_parallel_workers_per_gather = 0")

# The lock that a heartbeat needs.
_LOCK = text("LOCK TABLE sync_jobs IN ROW EXCLUSIVE MODE")

# Hidden from indexes (see by_id.py): that over leases would find the same thousand jobs for each job.
_UNCHANGED = """
    j.job_id = seen.job_id AND j.status || '' = 'RUNNING' AND j.attempt = seen.attempt
    AND j.leased_until IS NOT DISTINCT FROM seen.leased_until
"""
# The page is no join but a list (IS TRUE): Postgres does not know how long it is.
_HELD = """
    WITH page AS MATERIALIZED (
        SELECT CAST(job ->> 0 AS uuid) AS job_id, CAST(job ->> 1 AS smallint) AS attempt,
               CAST(job ->> 2 AS timestamptz) AS leased_until
        FROM json_array_elements(CAST(:page AS json)) AS job
    ), held AS MATERIALIZED (
        SELECT j.job_id, j.attempt, j.leased_until FROM sync_jobs j
        WHERE j.job_id = ANY(CAST(:job_ids AS uuid[])) AND j.status || '' = 'RUNNING'
            AND ((j.job_id, j.attempt, j.leased_until)
                IN (SELECT p.job_id, p.attempt, p.leased_until FROM page p)) IS TRUE
        FOR UPDATE OF j SKIP LOCKED
    )
"""

_STILL_EXPIRED = text(f"{_HELD} SELECT {_PACKED} FROM held")

_RESCUE = text(
    noted(
        f"""
        {_HELD}
        UPDATE sync_jobs j SET status = 'PENDING', leased_until = NULL, not_before = :now
        FROM held seen WHERE {_UNCHANGED} AND j.attempt < coalesce(j.attempts_allowed, :max_attempts)
        """,
        JobEvent.RESCUED,
        f"'{reasons.WORKER_LOST}', CAST(NULL AS bigint)",
    )
)

_GIVE_UP = text(
    noted(
        f"""
        {_HELD}
        UPDATE sync_jobs j SET status = 'FAILED', leased_until = NULL, completed_at = :now,
            error_message = 'gave up after ' || j.attempt || ' attempts: worker lost',
            reason_class = '{reasons.WORKER_LOST}'
        FROM held seen WHERE {_UNCHANGED} AND j.attempt >= coalesce(j.attempts_allowed, :max_attempts)
        """,
        JobEvent.FAILED,
    )
)


def expired(connection: Connection, now: datetime) -> list[Page]:
    """The RUNNING jobs whose lease has run out or lasts too long, within a transaction: up to 100,000, as
    the first look.
    """
    connection.execute(_ALONE)
    return [Page(page) for page in connection.execute(_EXPIRED, {"now": now}).scalars()]


def wait_as_a_heartbeat(connection: Connection) -> None:
    """Waits, in a transaction, as long as a heartbeat would wait for the table."""
    connection.execute(_LOCK)


def still_expired(connection: Connection, page: Page) -> Page | None:
    """The jobs of a page that have not changed and that nobody has locked; None if there are none."""
    found: str | None = connection.execute(_STILL_EXPIRED, _given(page)).scalar_one()
    return None if found is None else Page(found)


def rescue(connection: Connection, page: Page, *, now: datetime, max_attempts: int) -> int:
    """Moves the unchanged jobs of a page RUNNING → PENDING, due, if attempts are left; returns how many.

    max_attempts: of a job whose row does not say.
    """
    parameters = {**_given(page), "now": now, "max_attempts": max_attempts}
    return connection.execute(_RESCUE, parameters).rowcount


def give_up(connection: Connection, page: Page, *, now: datetime, max_attempts: int) -> int:
    """Moves the unchanged jobs of a page RUNNING → FAILED, if no attempt is left; returns how many."""
    parameters = {**_given(page), "now": now, "max_attempts": max_attempts}
    return connection.execute(_GIVE_UP, parameters).rowcount


def _given(page: Page) -> dict[str, object]:
    return {"page": page, "job_ids": [job_id for job_id, *_ in json.loads(page)]}
