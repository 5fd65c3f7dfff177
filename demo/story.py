"""The steps of the demo, and what it prints about them.

It stops everything that it started, however it ends.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from redis import Redis, RedisError
from rich.console import Console

from demo.display import Display
from demo.interruption import Interrupted, Interruption
from demo.processes import DemoError, Processes
from demo.stores import Ledger, Run, Stores, make_users, own_schema
from worker_scheduler import embedded
from worker_scheduler.config import urls
from worker_scheduler.config.postgres_url import postgres_url
from worker_scheduler.config.settings import Settings

USERS = 1_000
COMMAND_SECONDS = 20.0
TRIGGER_SECONDS = 15.0
JOBS_SECONDS = 40.0
HOME = Path(__file__).resolve().parent.parent

NEXT = """
What to try next, with your own PostgreSQL and Redis:
  export DATABASE_URL=postgresql://… REDIS_URL=redis://…
  .venv/bin/scheduler migrate             create the tables
  .venv/bin/scheduler check               check configuration and servers
  .venv/bin/scheduler daily --dry-run     show what the daily tick would do
README.md explains the next steps; `make test` runs the test suite."""


class WrongEnvironment(Exception):
    """DATABASE_URL and REDIS_URL cannot be used. The message says why."""


def tell(interruption: Interruption) -> int:
    """Runs the demo; returns the exit status."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        _demonstrate(console, interruption)
    except Interrupted as stop:
        _say_failure(str(stop))
        return stop.exit_status
    except WrongEnvironment as fault:
        _say_failure(str(fault))
        return 2
    except (DemoError, embedded.EmbeddedError, OSError) as fault:
        _say_failure(str(fault))
        return 1
    except (psycopg.Error, RedisError) as fault:
        server = "Postgres" if isinstance(fault, psycopg.Error) else "Redis"
        _say_failure(f"{server}: {' '.join(str(fault).split())}")
        return 1
    return 0


def _demonstrate(console: Console, interruption: Interruption) -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        stores = stack.enter_context(_stores(console))
        interruption.check()
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        processes = Processes(HOME, logs, _environment(stores, logs), interruption)
        stack.callback(processes.stop)

        console.print("scheduler migrate, and 1,000 demo users")
        processes.run("scheduler migrate", "worker_scheduler", "migrate", deadline_seconds=COMMAND_SECONDS)
        make_users(stores, USERS)
        console.print("celery -A worker_scheduler worker")
        celery = ("celery", "-A", "worker_scheduler")
        processes.start("worker", *celery, "worker", "--concurrency=2", "--loglevel=INFO")
        console.print("celery -A worker_scheduler beat, which finds that a daily slot has passed")
        processes.run("overdue", "demo.overdue", deadline_seconds=COMMAND_SECONDS)
        processes.start("beat", *celery, "beat", "--loglevel=INFO")
        beat_started_at = datetime.now(UTC)

        ledger = stack.enter_context(closing(Ledger(stores)))
        redis = stack.enter_context(Redis.from_url(stores.redis_url, socket_timeout=5))
        with Display(console, USERS) as display:
            run = _watch(ledger, redis, display, processes, interruption)
        _require_success(run)
        _summarise(console, run, beat_started_at)
        console.print("stopping all processes")
    console.print(f"the whole demo took {time.monotonic() - began:.1f} s")
    console.print(NEXT)


@contextmanager
def _stores(console: Console) -> Iterator[Stores]:
    """Starts embedded servers, or uses a schema of the servers that DATABASE_URL and REDIS_URL name."""
    database_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    if bool(database_url) != bool(redis_url):
        raise WrongEnvironment("set both DATABASE_URL and REDIS_URL, or neither")
    if database_url and redis_url:
        console.print("using Postgres at DATABASE_URL, in a new schema, and Redis at REDIS_URL")
        for name, check, value in (
            ("DATABASE_URL", postgres_url, database_url),
            ("REDIS_URL", urls.redis_url, redis_url),
        ):
            try:
                check(value)
            except ValueError as fault:
                raise WrongEnvironment(f"{name} {fault}") from None
        with own_schema(postgres_url(database_url), urls.redis_url(redis_url)) as stores:
            yield stores
    else:
        console.print("starting Postgres and Valkey from wheels; they stop when the demo ends")
        with embedded.servers() as servers:
            yield Stores(servers.database_url, servers.redis_url, redis_key_prefix="")


def _environment(stores: Stores, temporary: Path) -> dict[str, str]:
    """Returns this environment with the demo's variables in place of the scheduler's.

    So the demo does the same everywhere.

    A worker that has to be killed leaves its folder of temporary files; in `temporary` the demo removes it.
    """
    names = {name.upper() for name in Settings.model_fields}
    return {
        **{name: value for name, value in os.environ.items() if name not in names},
        "TMPDIR": str(temporary),
        "DATABASE_URL": stores.database_url,
        "REDIS_URL": stores.redis_url,
        "REDIS_KEY_PREFIX": stores.redis_key_prefix,
        "SYNC_HANDLER": "demo.handler:sync",
        "ENQUEUE_BATCH_SIZE": "100",
        "ENQUEUE_SLEEP_SECONDS": "0.05",
    }


def _watch(
    ledger: Ledger,
    redis: Redis,
    display: Display,
    processes: Processes,
    interruption: Interruption,
) -> Run:
    """Shows the run until each user's job has ended. Raises DemoError if that takes too long."""
    deadline = time.monotonic() + TRIGGER_SECONDS
    triggered = False
    while True:
        run = ledger.run()
        display.show(run)
        if run is not None and run.is_over and run.total >= USERS:
            return run
        if run is not None and not triggered:
            triggered = True
            deadline = time.monotonic() + JOBS_SECONDS
        processes.check()
        redis.ping()  # fails at once if Redis is away; worker and Beat would retry for a minute
        if time.monotonic() > deadline and not triggered:
            raise processes.failure("beat", f"did not trigger the daily tick within {TRIGGER_SECONDS:g} s")
        if time.monotonic() > deadline:
            raise processes.failure("worker", f"did not run all jobs within {JOBS_SECONDS:g} s")
        interruption.pause()


def _require_success(run: Run) -> None:
    if run.jobs["COMPLETED"] != USERS or run.total != USERS:
        counts = ", ".join(f"{count:,} {state}" for state, count in run.jobs.items() if count)
        raise DemoError(f"not all {USERS:,} jobs completed: {counts} ({run.an_error})")


def _summarise(console: Console, run: Run, beat_started_at: datetime) -> None:
    others = run.total - run.jobs["COMPLETED"]
    console.print(
        f"\n[bold green]{run.jobs['COMPLETED']:,} jobs COMPLETED, {others} in any other state[/bold green]"
        f" ({run.partition_key})"
    )
    for what, when in (
        ("the worker started the daily tick", run.created_at),
        ("the first job started", run.first_started_at),
        ("the last job completed", run.last_completed_at),
    ):
        if when is not None:
            console.print(f"  {(when - beat_started_at).total_seconds():5.1f} s  {what}")
    console.print("  after the start of Beat")


def _say_failure(what: str) -> None:
    # Written without Rich, because log lines may contain what Rich would take for markup.
    sys.stderr.write(f"demo: {what}\n")
