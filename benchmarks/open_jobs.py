"""Measures reconcile over many open jobs, with statistics that are older than they are.

`python -m benchmarks.open_jobs JOBS LOST` prints one JSON object, on stores that `measure` has filled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import psycopg
from redis import Redis
from sqlalchemy import Engine, event

from benchmarks.measure import Subject, child
from benchmarks.stores import StoreCopies, Stores
from worker_scheduler import wiring
from worker_scheduler.config.settings import load
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger import dead_workers, months
from worker_scheduler.maintenance import reconciler

_BATCH_SIZE = 1000
_EARLIER_JOBS = 50_000

# A run of the same month, all of it done: what the statistics know.
_EARLIER = """
INSERT INTO sync_jobs (job_id, user_id, github_login, status, triggered_by, partition_key, created_at,
                       run_id)
SELECT (%(prefix)s || lpad(to_hex(n), 8, '0'))::uuid, gen_random_uuid(), 'user-' || n, 'COMPLETED',
       'scheduler.daily', 'daily:earlier', %(at)s, %(run_id)s
FROM generate_series(1, %(jobs)s) n
"""
_TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relname LIKE 'sync_%' AND relkind = 'r'"
_LOST = "UPDATE sync_batches SET enqueued_at = now() - interval '1 hour' WHERE number < %s"
_DIED = """
UPDATE sync_jobs SET status = 'RUNNING', attempt = 1, leased_until = now() - interval '1 hour'
WHERE job_id IN (SELECT job_id FROM sync_jobs WHERE republished_in IS NULL AND status = 'PENDING' LIMIT %s)
"""


@dataclass(frozen=True)
class OpenJobs:
    """A pass over `lost` messages of `jobs` open jobs, and each rule's time per 1,000 jobs.

    slowest_ms: the slowest single statement.
    """

    jobs: int
    lost: int
    pass_seconds: float
    slowest_ms: float
    ms_per_1000: dict[str, float]


def measure(copies: StoreCopies, users: int, lost: int, say: Callable[[str], None]) -> OpenJobs:
    """Measures with `copies`, whose databases have `users` users."""
    with copies.fresh() as stores:
        _make_statistics_old(stores)
        child(stores, Subject("tick", _BATCH_SIZE))
        _lose(stores, lost)
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.open_jobs", str(users), str(lost)],
            env={
                "PATH": os.environ["PATH"],
                **stores.environment,
                "ENQUEUE_BATCH_SIZE": str(_BATCH_SIZE),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    measured = OpenJobs(**json.loads(ended.stdout.splitlines()[-1]))
    say(f"reconcile, {lost:,} lost of {users:,} open jobs: {measured.pass_seconds:.1f} s")
    return measured


def _make_statistics_old(stores: Stores) -> None:
    now = datetime.now(UTC)
    with psycopg.connect(stores.database_url, autocommit=True) as connection:
        for (table,) in connection.execute(_TABLES).fetchall():
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
        run = {"run_id": months.new_run_id(now), "prefix": months.uuid_prefix(now), "at": now}
        connection.execute(_EARLIER.encode(), {**run, "jobs": _EARLIER_JOBS})
        connection.execute("VACUUM ANALYZE sync_jobs, sync_batches, sync_runs")


def _lose(stores: Stores, lost: int) -> None:
    """Empties the queue. Only some messages are old enough to be taken for lost."""
    with psycopg.connect(stores.database_url) as connection, Redis.from_url(stores.redis_url) as redis:
        connection.execute(_LOST, [lost // _BATCH_SIZE])
        redis.delete("daily")


def main() -> None:
    """Measures and prints the figures."""
    jobs, lost = (int(number) for number in sys.argv[1:])
    with wiring.tick_context("benchmark", lambda _: None) as context, _slowest() as slowest:
        seconds = {rule.__name__: _seconds(rule, context, lost) for rule in reconciler.RULES}
        pass_seconds = sum(seconds.values())
        rules = {"lost_messages": seconds["lost_messages"], "due_jobs": seconds["due_jobs"]}
        rules |= _after_a_loss_of_data(context, jobs)
        rules |= _dead_workers(context, lost)
        slowest_ms = max(slowest) * 1000
    per_1000 = {name: each / (_JOBS_OF[name](jobs, lost) / 1000) * 1000 for name, each in rules.items()}
    measured = OpenJobs(jobs, lost, pass_seconds, slowest_ms, per_1000)
    print(json.dumps(vars(measured)))


_JOBS_OF: dict[str, Callable[[int, int], int]] = {
    "lost_messages": lambda _, lost: lost,
    "due_jobs": lambda _, lost: lost,
    "lost_broker_data": lambda jobs, _: jobs,
    "dead_workers": lambda _, lost: lost // 2,
}
"""How many jobs each rule has put right."""


def _seconds(rule: Callable[[TickContext], int], context: TickContext, lost: int) -> float:
    began = perf_counter()
    found = rule(context)
    taken = perf_counter() - began
    if rule.__name__ in {"lost_messages", "due_jobs"} and found != lost:
        raise AssertionError(f"{rule.__name__} has put right {found}, not {lost}")
    return taken


def _after_a_loss_of_data(context: TickContext, jobs: int) -> dict[str, float]:
    """All messages are lost: those sent again alone, and those of the batches."""
    with Redis.from_url(load().redis_url.get_secret_value()) as redis:
        redis.flushdb()
    began = perf_counter()
    found = reconciler.lost_broker_data(context)
    taken = perf_counter() - began
    if not found:
        raise AssertionError(f"nothing found of {jobs} jobs")
    return {"lost_broker_data": taken}


def _dead_workers(context: TickContext, lost: int) -> dict[str, float]:
    """Without the half of a lease between two looks."""
    with psycopg.connect(load().database_url.get_secret_value().replace("+psycopg", "")) as connection:
        connection.execute(_DIED, [lost // 2])
    now = context.clock()
    began = perf_counter()
    with context.database.autocommit() as connection:
        pages = dead_workers.expired(connection, now)
        still = [page for each in pages if (page := dead_workers.still_expired(connection, each))]
        moved = sum(dead_workers.rescue(connection, page, now=now, max_attempts=3) for page in still)
    taken = perf_counter() - began
    if moved != lost // 2:
        raise AssertionError(f"{moved} jobs taken from dead workers, not {lost // 2}")
    return {"dead_workers": taken}


@contextmanager
def _slowest() -> Iterator[list[float]]:
    """The times of all statements, in seconds."""
    times: list[float] = [0.0]
    began: list[float] = []

    def before(*_: Any) -> None:
        began.append(perf_counter())

    def after(*_: Any) -> None:
        times.append(perf_counter() - began.pop())

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    yield times
    event.remove(Engine, "before_cursor_execute", before)
    event.remove(Engine, "after_cursor_execute", after)


if __name__ == "__main__":
    main()
