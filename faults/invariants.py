"""Checks a partition after its fault, in Postgres and in the handler's record."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from faults import bad_handlers
from faults.faults import USERS_PER_FAULT, Fault
from faults.handler import Entry, read

NO_RUN = "the run is missing"
_UNFINISHED = """
SELECT 'the run is ' || coalesce((SELECT state FROM sync_runs WHERE partition_key = %(key)s), 'missing')
WHERE NOT EXISTS (SELECT FROM sync_runs WHERE partition_key = %(key)s AND state = 'FINISHED')
UNION ALL
SELECT count(*) || ' jobs are ' || status FROM sync_jobs
WHERE partition_key = %(key)s AND status NOT IN ('COMPLETED', 'FAILED', 'SKIPPED') GROUP BY status
UNION ALL
SELECT count(*) || ' jobs have a lease' FROM sync_jobs
WHERE partition_key = %(key)s AND leased_until IS NOT NULL HAVING count(*) > 0
UNION ALL
SELECT 'the run has a lease' FROM sync_runs WHERE partition_key = %(key)s AND leased_until IS NOT NULL
UNION ALL
SELECT 'batch ' || number || ' is unsent or leased' FROM sync_batches JOIN sync_runs USING (run_id)
WHERE partition_key = %(key)s AND (claimed_until IS NOT NULL OR sync_batches.enqueued_at IS NULL)
UNION ALL
SELECT 'a tick lock is held' FROM sync_locks WHERE partition_key = %(key)s
"""

_JOBS = """
SELECT job_id, user_id, status, github_login, error_message, attempt FROM sync_jobs WHERE partition_key = %s
"""

_USERS = "SELECT id FROM users WHERE number >= %s AND number < %s"


_LEASED = """
SELECT EXISTS (SELECT FROM sync_runs WHERE partition_key = %(key)s AND leased_until > now())
    OR EXISTS (SELECT FROM sync_batches JOIN sync_runs USING (run_id)
               WHERE partition_key = %(key)s AND claimed_until > now())
"""


def leases_ran_out(database_url: str, fault: Fault) -> bool:
    """Whether no process holds a lease of the run or of one of its batches."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute(_LEASED, {"key": fault.partition_key}).fetchone()
    assert row is not None
    return not row[0]


def unfinished(database_url: str, fault: Fault) -> list[str]:
    """Returns what reconcile or a worker still has to do. The list may become empty by waiting."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        return [row[0] for row in connection.execute(_UNFINISHED, {"key": fault.partition_key})]


def open_jobs(database_url: str) -> int:
    """Counts the jobs of all partitions that are PENDING or RUNNING."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM sync_jobs WHERE status IN ('PENDING', 'RUNNING')"
        ).fetchone()
    assert row is not None
    return int(row[0])


def broken(database_url: str, fault: Fault, record: Path, killed: frozenset[str]) -> list[str]:
    """Returns what waiting cannot fix. killed: the workers that the suite has killed."""
    first = fault.first_user
    with psycopg.connect(database_url, autocommit=True) as connection:
        jobs = connection.execute(_JOBS, [fault.partition_key]).fetchall()
        users = {row[0] for row in connection.execute(_USERS, [first, first + USERS_PER_FAULT])}
    jobs_of = Counter(user_id for _, user_id, *_ in jobs)
    entries = read(record)
    bad = [job for job in jobs if bad_handlers.of_login(job[3])]
    good = [job for job in jobs if not bad_handlers.of_login(job[3])]
    found = [
        *_difference("users without a job", users - jobs_of.keys()),
        *_difference("jobs of users of other faults", jobs_of.keys() - users),
        *_difference("users with several jobs", {user for user, number in jobs_of.items() if number > 1}),
        *_difference("jobs not COMPLETED", {job for job, _, status, *_ in good if status != "COMPLETED"}),
    ]
    recorded = _not_as_recorded({job for job, *_ in good}, entries, killed)
    return found + _not_as_named(bad, entries) + recorded


def bad_jobs(database_url: str, fault: Fault) -> set[UUID]:
    """The jobs of users whose login names a bad handler."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        jobs = connection.execute(_JOBS, [fault.partition_key]).fetchall()
    return {job_id for job_id, _, _, login, *_ in jobs if bad_handlers.of_login(login)}


def handled_again(database_url: str, fault: Fault, record: Path) -> int:
    """Counts the jobs of the partition that were begun more than once, other than by RetryLater."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        jobs = connection.execute(_JOBS, [fault.partition_key]).fetchall()
    job_ids = {job_id for job_id, _, _, login, *_ in jobs if not bad_handlers.of_login(login)}
    times: Counter[UUID] = Counter()
    for entry in read(record):
        if entry.job_id in job_ids:
            times[entry.job_id] += {"began": 1, "put-off": -1}.get(entry.what, 0)
    return sum(1 for number in times.values() if number > 1)


def _not_as_named(jobs: list[tuple[Any, ...]], entries: list[Entry]) -> list[str]:
    """What differs from the end that each bad handler must have, and from the attempts in the record."""
    found = []
    for job_id, _, status, login, text, attempts in jobs:
        bad = bad_handlers.of_login(login)
        begun = [entry.attempt for entry in entries if entry.job_id == job_id and entry.what == "began"]
        if bad is None or bad.differs(status, text, attempts) or begun != [*range(1, attempts + 1)]:
            shown = f"{status} {(text or '')[:80]!r}, {attempts} attempts, begun {begun}"
            found.append(f"the job of {login} ended as {shown}")
    return found


def _not_as_recorded(jobs: set[UUID], entries: list[Entry], killed: frozenset[str]) -> list[str]:
    by_job: dict[UUID, list[Entry]] = defaultdict(list)
    last_begun: dict[str, tuple[UUID, int]] = {}
    for entry in entries:
        if entry.job_id in jobs:
            by_job[entry.job_id].append(entry)
        if entry.what == "began":
            last_begun[entry.process] = (entry.job_id, entry.attempt)
    # A worker runs one job at a time, so the job that it ran when it was killed is the last one it began.
    in_hand = {last_begun[process] for process in killed & last_begun.keys()}
    never = {job for job in jobs if not any(entry.what == "ended" for entry in by_job[job])}
    again = {job for job in jobs if _unexcused(by_job[job], in_hand) > 1}
    return [
        *_difference("jobs that no handler has ended", never),
        *_difference("jobs done again although no worker was killed while it ran them", again),
    ]


def _unexcused(entries: list[Entry], in_hand: set[tuple[UUID, int]]) -> int:
    begun = [(entry.job_id, entry.attempt) for entry in entries if entry.what == "began"]
    put_off = [(entry.job_id, entry.attempt) for entry in entries if entry.what == "put-off"]
    return len(begun) - len(put_off) - sum(1 for attempt in set(begun) if attempt in in_hand)


def _difference(what: str, ids: set[UUID]) -> list[str]:
    if not ids:
        return []
    shown = ", ".join(str(one) for one in sorted(ids)[:3])
    return [f"{len(ids)} {what}: {shown}{', …' if len(ids) > 3 else ''}"]
