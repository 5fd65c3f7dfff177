"""Runs one subject in this process: `python -m benchmarks.subjects NAME BATCH_SIZE`.

Prints one JSON object: `began`, when the work began (seconds since 1970); `seconds`, how long it took; and
`peak_kib`, the process's peak memory. The time does not include imports and preparations.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from itertools import chain, zip_longest
from typing import Any
from uuid import UUID, uuid4

import psycopg
from celery import Celery, group
from kombu.transport import memory as _memory  # noqa: F401 - rendering a message imports it: not in the time
from redis import Redis
from sqlalchemy import Connection, create_engine, insert, text

from benchmarks.stores import DAY, KEY
from worker_scheduler import app, wiring
from worker_scheduler import tasks as _tasks  # noqa: F401 - choosing a publisher imports it: not in the time
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.config.settings import load
from worker_scheduler.fanout import tick
from worker_scheduler.ledger import tables
from worker_scheduler.ledger.months import new_run_id, uuid_prefix
from worker_scheduler.maintenance import reconciler
from worker_scheduler.publisher import SharedFields
from worker_scheduler.publisher.template import MessageTemplate, render

TRIGGER = "scheduler.daily"
PUSH_MESSAGES = 1000
IDIOM_ROWS = 1000

Work = Callable[[], object]

_RUN = """
INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, state, requested_by, created_at)
VALUES (%s, %s, 'daily', %s, 'DISPATCHING', 'benchmark', now())
"""
_FLOOR_JOBS = """
INSERT INTO sync_jobs (job_id, user_id, github_login, status, triggered_by, partition_key, created_at,
                       run_id)
SELECT (%s || lpad(to_hex(row_number() OVER (ORDER BY id)), 8, '0'))::uuid, id, github_login,
       'PENDING', %s, %s, now(), %s
FROM users
"""


def prepare_tick(batch_size: int) -> Work:
    """Prepares `scheduler daily`, from its first query to its last, without pauses."""

    def work() -> None:
        options = DailyOptions(date=DAY, enqueue_batch_size=batch_size, enqueue_sleep_seconds=0)
        with wiring.tick_context("benchmark", lambda _: None) as context:
            report = tick.daily(context, options)
        if report.failure is not None:
            raise report.failure

    return work


def prepare_reconcile(batch_size: int) -> Work:
    """Prepares one pass of `scheduler reconcile` that finds nothing to do, on open connections."""
    context = ExitStack().enter_context(wiring.tick_context("benchmark", lambda _: None))
    reconciler.reconcile(context)

    def work() -> None:
        result = reconciler.reconcile(context)
        if result.errors or any(result.put_right.values()):
            raise AssertionError(result)

    return work


def prepare_floor(batch_size: int) -> Work:
    """Prepares the least that the stores must do: one INSERT … SELECT of a tick's rows, then LPUSH of its
    messages, one after the other.

    The messages and the ids of their jobs are made beforehand.
    """
    settings = load()
    connection = psycopg.connect(settings.database_url.get_secret_value().replace("+psycopg", ""))
    now = datetime.now(UTC)
    run_id, prefix = new_run_id(now), uuid_prefix(now)
    connection.execute(_RUN.encode(), [run_id, KEY, TRIGGER])
    user_ids = connection.execute("SELECT id::text FROM users ORDER BY id").fetchall()
    connection.commit()
    dashed = str(UUID(f"{prefix}00000000"))[:-8]
    jobs = [(f"{dashed}{number:08x}", user_id) for number, (user_id,) in enumerate(user_ids, 1)]
    template = render(app, SharedFields("daily", KEY, TRIGGER, None))
    pushes = [
        list(_rendered(template, jobs[first : first + PUSH_MESSAGES]))
        for first in range(0, len(jobs), PUSH_MESSAGES)
    ]
    redis = Redis.from_url(settings.broker_url)
    redis.ping()

    def work() -> None:
        connection.execute(_FLOOR_JOBS, [prefix, TRIGGER, KEY, run_id])
        connection.commit()
        for messages in pushes:
            redis.lpush("daily", *messages)

    return work


def _rendered(template: MessageTemplate, jobs: list[tuple[str, str]]) -> Iterator[bytes]:
    """Yields the messages, byte for byte as the tick's script makes them from the template."""
    group_id, tag = str(uuid4()), str(uuid4())[:28]
    for index, (job_id, user_id) in enumerate(jobs):
        value = {
            "job": job_id,
            "user": user_id,
            "group": group_id,
            "index": str(index),
            "tag": f"{tag}{index:08x}",
        }
        filled = [value[gap] for gap in template.gaps]
        yield "".join(chain.from_iterable(zip_longest(template.texts, filled, fillvalue=""))).encode()


def prepare_group(batch_size: int) -> Work:
    """Prepares Celery's idiom: executemany of 1,000 rows, then `group(...).apply_async()` per batch."""
    return _idiom(batch_size, lambda producer: nullcontext())


def prepare_group_in_batch(batch_size: int) -> Work:
    """Prepares the same idiom within kombu's `Producer.batch()`."""
    return _idiom(batch_size, lambda producer: producer.batch(max_size=1000))


def _idiom(batch_size: int, within: Callable[[Any], AbstractContextManager[object]]) -> Work:
    settings = load()
    engine = create_engine(settings.database_url.get_secret_value())
    task = _stock_task(settings.broker_url)
    run_id = new_run_id(datetime.now(UTC))

    def publish(jobs: list[dict[str, Any]]) -> None:
        with task.app.producer_or_acquire() as producer, within(producer):
            signatures = [
                task.s(str(job["user_id"]), KEY, TRIGGER).set(task_id=str(job["job_id"]), queue="daily")
                for job in jobs
            ]
            group(signatures).apply_async(producer=producer)

    def write(connection: Connection, users: list[Any]) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        jobs = [_row(run_id, user_id, login, now) for user_id, login in users]
        connection.execute(insert(tables.sync_jobs), jobs)
        connection.commit()
        return jobs

    def work() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(_RUN, (run_id, KEY, TRIGGER))
            users = connection.execute(text("SELECT id, github_login FROM users ORDER BY id")).all()
            for first in range(0, len(users), IDIOM_ROWS):
                jobs = write(connection, list(users[first : first + IDIOM_ROWS]))
                for start in range(0, len(jobs), batch_size):
                    publish(jobs[start : start + batch_size])

    return work


def _stock_task(broker_url: str) -> Any:
    """Returns a `sync_user` task of an app with Celery's own settings and no results."""
    stock = Celery("idiom", broker=broker_url)
    stock.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

    @stock.task(name="sync_user")  # type: ignore[untyped-decorator]
    def sync_user(user_id: str, partition_key: str, triggered_by: str) -> None: ...

    with stock.connection_for_write() as connection:
        connection.connect()
    return sync_user


def _row(run_id: UUID, user_id: UUID, login: str, now: datetime) -> dict[str, Any]:
    return {
        "job_id": uuid4(),
        "user_id": user_id,
        "github_login": login,
        "status": "PENDING",
        "triggered_by": TRIGGER,
        "partition_key": KEY,
        "created_at": now,
        "run_id": run_id,
    }


PREPARE: dict[str, Callable[[int], Work]] = {
    "tick": prepare_tick,
    "floor": prepare_floor,
    "reconcile": prepare_reconcile,
    "group": prepare_group,
    "group-in-batch": prepare_group_in_batch,
}


def main() -> None:
    """Prepares the subject, runs it and prints its figures."""
    name, batch_size = sys.argv[1], int(sys.argv[2])
    work = PREPARE[name](batch_size)
    began, started = time.time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"began": began, "seconds": seconds, "peak_kib": peak_kib}))


if __name__ == "__main__":
    main()
