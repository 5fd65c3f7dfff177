"""Measures the bytes of one job, and simulates a day with many users. For docs/scale.md.

`python -m benchmarks.scale [--users N] [--jobs-per-second W] [--depth D]`. It measures no speeds: those of
planning, dispatch and workers are arguments, taken from docs/performance.md or elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import psycopg
from redis import Redis

from benchmarks.measure import Subject, child
from benchmarks.stores import StoreCopies, Stores
from worker_scheduler import embedded

_SAMPLE = 200_000
_FEW = 1_000
_DAY = 24 * 3600

_SIZES = """
SELECT sum(pg_relation_size(relid)), sum(pg_indexes_size(relid))
FROM pg_partition_tree('sync_jobs') WHERE isleaf
"""
_INDEX_SIZE = """
SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree('{}') WHERE isleaf
"""
_MARKER_DAYS = 8
_MARKERS = 100_000
# The setting of a server that must survive a crash: after a checkpoint each page is logged whole once.
# wal_level stays minimal, which saves log only for a table filled by the transaction that created it.
_LOGGED_AS_IN_PRODUCTION = ("ALTER SYSTEM SET full_page_writes = on", "SELECT pg_reload_conf()")
_DO_ALL = (
    "UPDATE sync_jobs SET status = 'RUNNING', attempt = 1, started_at = now(), leased_until = now()",
    "UPDATE sync_jobs SET status = 'COMPLETED', completed_at = now(), leased_until = NULL",
)


@dataclass(frozen=True)
class JobBytes:
    """Bytes of one job: in Postgres once planned and once done, in the WAL, and in Redis while it waits.

    open_entry, unique_entry: its entries in the partial index of open jobs and in the unique index;
    `indexes` includes both. message: the message with all that Redis keeps for it. text: only the
    message's text. text_by_celery: the text of the same task's message with Celery's own settings.
    marker: the marker of one batch in Redis.
    """

    row: float
    indexes: float
    open_entry: float
    unique_entry: float
    row_done: float
    indexes_done: float
    wal_planned: float
    wal_done: float
    message: float
    text: float
    text_by_celery: float
    marker: float


@dataclass(frozen=True)
class Speeds:
    """Jobs per second that are planned, dispatched by one dispatcher, and done by all workers."""

    planned: float
    dispatched: float
    done: float


@dataclass
class Moment:
    """The state at one second of the day."""

    second: int = 0
    planned: float = 0.0
    dispatched: float = 0.0
    done: float = 0.0

    @property
    def waiting(self) -> float:
        """How many messages are in Redis."""
        return self.dispatched - self.done


def measure() -> JobBytes:
    """Measures on embedded servers, with a sample of users."""
    with embedded.servers() as servers:
        few = StoreCopies(servers, _FEW)
        texts = [_text(few, subject) for subject in (Subject("tick", 200), Subject("group", 200))]
        with StoreCopies(servers, _SAMPLE).fresh() as stores:
            return _measure(stores, texts)


def _text(copies: StoreCopies, subject: Subject) -> float:
    with copies.fresh() as stores, Redis.from_url(stores.redis_url) as redis:
        child(stores, subject)
        return float(len(redis.lindex("daily", 0)))


def _measure(stores: Stores, texts: list[float]) -> JobBytes:
    with Redis.from_url(stores.redis_url) as redis, psycopg.connect(stores.database_url) as connection:
        connection.autocommit = True
        for statement in _LOGGED_AS_IN_PRODUCTION:
            connection.execute(statement.encode())
        connection.execute("CHECKPOINT")
        empty, log = redis.info("memory")["used_memory"], _wal(connection)
        child(stores, Subject("tick", 1000))
        row, indexes = _sizes(connection)
        entries = [_index_size(connection, f"sync_jobs_{name}") for name in ("open", "one_job_per_user")]
        message = redis.info("memory")["used_memory"] - empty
        planned = _wal(connection)
        connection.execute("CHECKPOINT")
        for step in _DO_ALL:  # what workers do job by job, in one statement; vacuum runs in between
            connection.execute(step.encode())
            connection.execute("VACUUM sync_jobs")
        row_done, indexes_done = _sizes(connection)
        done = _wal(connection)
        marker = _marker(redis)
    figures = row, indexes, *entries, row_done, indexes_done, planned - log, done - planned, message
    return JobBytes(*[figure / _SAMPLE for figure in figures] + [*texts, marker])


def _marker(redis: Redis) -> float:
    """Returns the bytes of one marker, measured over many because Redis allocates memory in steps."""
    empty = redis.info("memory")["used_memory"]
    run_id = uuid4()
    with redis.pipeline(transaction=False) as pipeline:
        for number in range(_MARKERS):
            key = f"worker_scheduler:batch:{run_id}:{number}:0"
            pipeline.set(key, str(uuid4()), ex=_MARKER_DAYS * _DAY)
        pipeline.execute()
    filled = redis.info("memory")["used_memory"]
    return float(filled - empty) / _MARKERS


def _index_size(connection: psycopg.Connection, index: str) -> float:
    found = connection.execute(_INDEX_SIZE.format(index).encode()).fetchone()
    assert found is not None
    return float(found[0])


def _sizes(connection: psycopg.Connection) -> tuple[float, float]:
    found = connection.execute(_SIZES).fetchone()
    assert found is not None
    return float(found[0]), float(found[1])


def _wal(connection: psycopg.Connection) -> float:
    found = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert found is not None
    return float(found[0])


def day(users: int, speeds: Speeds, depth: int | None, dispatchers: int) -> Iterator[Moment]:
    """Simulates one run second by second, until every job is done.

    depth: MAX_QUEUE_DEPTH, or None without a bound.
    """
    now = Moment()
    while now.done < users:
        now.second += 1
        now.planned = min(users, now.planned + speeds.planned)
        space = float("inf") if depth is None else max(0.0, depth - now.waiting)
        sent = min(now.planned - now.dispatched, speeds.dispatched * dispatchers, space)
        now.dispatched += sent
        now.done = min(now.dispatched, now.done + speeds.done)
        yield now


def report(users: int, speeds: Speeds, depth: int, job: JobBytes) -> Iterator[str]:
    """Yields the lines of two Markdown tables: one job's bytes, and the day."""
    yield "| of one job | bytes |"
    yield "|---|---:|"
    for name, value in vars(job).items():
        yield f"| {name.replace('_', ' ')} | {value:,.0f} |"
    yield ""
    yield f"| {users:,} users per day | |"
    yield "|---|---:|"
    done = job.row_done + job.indexes_done
    yield f"| Postgres, a day's jobs, done | {users * done / 1e9:,.0f} GB |"
    yield f"| Postgres, 90 days and the current month | {users * done * 120 / 1e12:,.1f} TB |"
    yield f"| WAL of a day | {users * (job.wal_planned + job.wal_done) / 1e9:,.0f} GB |"
    for bound in (None, depth):
        peak, planned, ended = 0.0, 0, 0
        for moment in day(users, speeds, bound, dispatchers=1):
            peak = max(peak, moment.waiting)
            planned = planned or (moment.second if moment.planned == users else 0)
            ended = moment.second
        name = "no bound" if bound is None else f"MAX_QUEUE_DEPTH={bound:,}"
        yield f"| {name}: most messages in Redis | {peak:,.0f}, {peak * job.message / 1e9:,.2f} GB |"
        yield f"| {name}: planned after, done after | {planned / 60:,.0f} min, {ended / 3600:,.1f} h |"
    for batch_size in (1000, 200):
        markers = users / batch_size * _MARKER_DAYS
        yield (
            f"| markers of {_MARKER_DAYS} days, batches of {batch_size} |"
            f" {markers:,.0f}, {markers * job.marker / 1e9:,.2f} GB |"
        )
    yield f"| jobs per second that all workers together must do to finish in a day | {users / _DAY:,.0f} |"


def main() -> None:
    """Measures, simulates, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--users", type=int, default=100_000_000)
    parser.add_argument("--jobs-per-second", type=float, default=2000, help="of all workers together")
    parser.add_argument("--depth", type=int, default=100_000, help="MAX_QUEUE_DEPTH")
    parser.add_argument("--planned-per-second", type=float, default=180_000)
    parser.add_argument("--dispatched-per-second", type=float, default=250_000)
    asked = parser.parse_args()
    speeds = Speeds(asked.planned_per_second, asked.dispatched_per_second, asked.jobs_per_second)
    print("\n".join(report(asked.users, speeds, asked.depth, measure())))


if __name__ == "__main__":
    main()
