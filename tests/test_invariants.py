"""The invariants of docs/internals.md that ticks and workers keep. Each test has an invariant's name."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import psycopg
import pytest
from sqlalchemy import TextClause

import worker_scheduler
from tests.support.command_line import Outcome, outcome_of
from tests.support.herd import run_herd
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.proxy import Proxy
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler import ledger as ledger_package
from worker_scheduler.ledger.lease_sql import WAITED

Scheduler = Callable[..., Outcome]

DAY = "2026-11-23"
KEY = f"daily:{DAY}"
PACKAGE = Path(worker_scheduler.__file__).parent


def test_one_job_per_user(environment: dict[str, str], ledger: Ledger, broker: Broker) -> None:
    """With all locks switched off, and also against inserts that bypass the planner."""
    make_users(ledger.url, 2000)
    environment |= {"SCHEDULER_LOCK_ENABLED": "0", "ENQUEUE_BATCH_SIZE": "50", "ENQUEUE_SLEEP_SECONDS": "0"}
    outcomes = run_herd(environment, 4, "worker_scheduler.cli:run", "daily", "--date", DAY, "--json")
    assert sum(outcome.report["jobs_inserted"] for outcome in outcomes) == 2000
    assert len({job["user_id"] for job in ledger.jobs()}) == ledger.count() == 2000
    assert len({message.task_id for message in broker.messages("daily")}) == broker.count("daily") == 2000
    with pytest.raises(psycopg.errors.UniqueViolation):
        ledger.execute(
            "INSERT INTO sync_jobs (job_id, user_id, triggered_by, partition_key, run_id)"
            " SELECT gen_random_uuid(), user_id, triggered_by, partition_key, run_id FROM sync_jobs LIMIT 1"
        )


def test_row_before_message(
    scheduler: Scheduler, ledger: Ledger, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by a proxy: when a message passes, its row is committed and no transaction is open."""
    make_users(ledger.url, 30)
    watched: list[tuple[int, int, int]] = []
    users = {str(user_id(number)).encode() for number in range(1, 31)}
    an_id = rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"

    def watch(data: bytes) -> None:
        # A batch's ids pass as pairs of a job's id and its user's id, with nothing in between. A packet may
        # begin anywhere, so two adjoining ids are a pair only if the second is a user's.
        pairs = re.findall(b"(?=%s%s)" % (an_id, an_id), data)
        job_ids = [job_id for job_id, user in pairs if user in users]
        if job_ids:
            watched.append(
                (
                    len(job_ids),
                    ledger.value(
                        "SELECT count(*) FROM sync_jobs WHERE job_id::text = ANY(%s)",
                        [job_id.decode() for job_id in job_ids],
                    ),
                    ledger.value(
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'worker_scheduler'"
                        " AND datname = current_database() AND xact_start IS NOT NULL"
                        " AND pid <> pg_backend_pid()"  # behind a pooler, it has that name, too
                    ),
                )
            )

    with Proxy(redis_url, watch=watch) as proxy:
        monkeypatch.setenv("REDIS_URL", proxy.url)
        scheduler("daily", "--date", DAY, "--enqueue-batch-size", "10")
    assert sum(messages for messages, _, _ in watched) >= 27  # a pair may be split between two packets
    for messages, rows, transactions in watched:
        assert (messages, transactions) == (rows, 0)


def test_batch_published_once(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    """Redis stores a marker together with the messages, and a leased batch stays with its holder."""
    make_users(ledger.url, 30)
    scheduler("daily", "--date", DAY, "--enqueue-batch-size", "10")
    # As if the tick had died after each push, before it marked the batch as sent.
    ledger.execute("UPDATE sync_batches SET enqueued_at = NULL")
    assert scheduler("daily", "--date", DAY, "--json").report["jobs_enqueued"] == 30
    assert broker.count("daily") == 30
    ledger.execute(
        "UPDATE sync_batches SET enqueued_at = NULL, claimed_by = gen_random_uuid(),"
        " claimed_until = now() + interval '20 seconds' WHERE number = 1"
    )
    assert scheduler("daily", "--date", DAY, "--json").report["jobs_enqueued"] == 0
    assert broker.count("daily") == 30
    ledger.execute("UPDATE sync_batches SET claimed_until = now() - interval '1 second' WHERE number = 1")
    broker.lose_everything()
    assert scheduler("daily", "--date", DAY, "--json").report["jobs_enqueued"] == 10
    assert scheduler("daily", "--date", DAY, "--json").report["jobs_enqueued"] == 0
    assert broker.count("daily") == 10


def statements() -> Iterator[tuple[str, str]]:
    """Yields every SQL text of the ledger, each with the name of its constant."""
    for module_info in iter_modules(ledger_package.__path__, "worker_scheduler.ledger."):
        if not module_info.ispkg:
            module = import_module(module_info.name)
            for name, value in vars(module).items():
                for each in texts_of(value):
                    yield f"{module_info.name}.{name}", each


def texts_of(value: object) -> Iterator[str]:
    """Yields the SQL of a constant: a statement, a dictionary of them, or the variants of one."""
    if isinstance(value, TextClause | str):
        yield str(value)
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_of(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from texts_of(each)


def test_guarded_moves() -> None:
    """Every UPDATE names the state it starts from, so that two writers cannot overwrite each other."""
    guards = {
        "sync_jobs": r"\bstatus( \|\| '')? (=|IN|<>) ",
        "sync_runs": r"\bstate (=|IN|<>) ",
        "sync_batches": r"\benqueued_at IS (NOT )?NULL",
        "sync_locks": r"\bholder = :holder",
        "sync_origin": r"\bsince = :seen_since",
        "sync_passes": r"\bbegun_at (=|<=) :begun_(at|until)",
        "sync_probes": r"\barrived_at IS NULL",
        "sync_suspects": r"\bmissed_at IS NULL",
    }
    updates = 0
    for place, sql in statements():
        for table, condition in re.findall(r"UPDATE (sync_\w+)\b.*?\bSET\b(.*)", sql, re.DOTALL):
            updates += 1
            where = condition.partition("WHERE")[2]
            assert re.search(guards[table], where), f"{place}: {sql}"
    assert updates > 20


def test_one_worker_per_job(environment: dict[str, str], scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    scheduler("daily", "--date", DAY)
    (job,) = ledger.jobs()
    environment["LOG_LEVEL"] = "ERROR"
    # The row is locked until all workers wait for it.
    with psycopg.connect(ledger.url) as connection:
        connection.execute("SELECT FROM sync_jobs FOR UPDATE")
        with ThreadPoolExecutor(1) as executor:
            herd = executor.submit(run_herd, environment, 6, "tests.support.herd:work", str(job["job_id"]))
            wait_for_lockers(ledger, 6)
            connection.rollback()
            outcomes = herd.result(60)
    assert sorted(outcome.stdout for outcome in outcomes) == [""] * 5 + ["1\n"]
    assert (ledger.job(job["job_id"])["status"], ledger.job(job["job_id"])["attempt"]) == ("COMPLETED", 1)


def wait_for_lockers(ledger: Ledger, number: int) -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND application_name = 'worker_scheduler'"
    )
    wait_until(lambda: ledger.value(waiting) == number, 30, f"{number} workers waiting for the row")


@pytest.mark.parametrize(
    "command",
    [
        ["daily", "--max-enqueued-jobs", "59"],
        ["backfill", "--backfill-days", "1"],
        ["backfill", "--backfill-days", "1", "--github-logins", "nobody"],
        ["backfill", "--backfill-days", "1", "--github-logins", "nobody", "--allow-missing"],
        ["backfill", "--backfill-days", "9", "--confirm", "--partition-key", "taken"],
        ["backfill", "--backfill-days", "0"],
        ["daily", "--date", "tomorrow"],
    ],
)
def test_refused_means_untouched(
    command: list[str], scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 60)
    scheduler("backfill", "--backfill-days", "1", "--partition-key", "taken", "--user-ids", str(user_id(1)))
    rows, messages = ledger.everything(), broker.everything()
    assert scheduler(*command).status in {2, 3}
    assert ledger.everything() == rows
    assert broker.everything() == messages


PEAK = """
import sys, tracemalloc
from worker_scheduler import wiring
from worker_scheduler.cli import run
tracemalloc.start()
assert run(sys.argv[1:]) == 0
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize(
    ("publisher", "sizes"), [("redis-bulk", (10_000, 40_000)), ("group", (1000, 4000))]
)
@pytest.mark.slow
def test_bounded_memory(
    publisher: str, sizes: tuple[int, int], environment: dict[str, str], ledger: Ledger
) -> None:
    """Four times the users need less than 0.1 MB more: 40 bytes per user would fail."""
    environment |= {
        "ENQUEUE_SLEEP_SECONDS": "0",
        "LOG_LEVEL": "ERROR",
        "MAX_ENQUEUED_JOBS": "40000",
        "PUBLISHER": publisher,
    }
    peaks: list[float] = []
    for users in sizes:
        make_users(ledger.url, users)
        command = ["daily", "--date", f"2026-11-{len(peaks) + 1:02}"]
        outcome = outcome_of([sys.executable, "-c", PEAK, *command], environment)
        assert outcome.status == 0, outcome.stderr
        peaks.append(int(outcome.stdout.splitlines()[-1]) / 1024**2)
    few, many = peaks
    assert many - few < 0.1, f"{few:.2f} MB for {sizes[0]} users, {many:.2f} MB for {sizes[1]}"


def test_time_is_given(deployed: None, ledger: Ledger) -> None:
    """Code below the entry points never asks for the time, in Python or in SQL; stored times are UTC."""
    from worker_scheduler import wiring
    from worker_scheduler.config.options import parse_daily
    from worker_scheduler.fanout import tick

    make_users(ledger.url, 2)
    now = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
    with wiring.tick_context("test", lambda _: None) as context:
        report = tick.daily(replace(context, clock=lambda: now), parse_daily({}))
        elsewhere = now.astimezone(datetime.strptime("+1400", "%z").tzinfo) + timedelta(days=1)
        tomorrow = tick.daily(replace(context, clock=lambda: elsewhere), parse_daily({}))
    assert report.partition_key == "daily:2031-05-04"
    assert tomorrow.partition_key == "daily:2031-05-05"
    assert report.duration_seconds == 0
    given = {now, now + timedelta(days=1)}
    for table, columns in {
        "sync_runs": ("created_at", "planned_at", "enqueued_at"),
        "sync_batches": ("enqueued_at",),
        "sync_jobs": ("created_at",),
    }.items():
        for column in columns:
            stored: set[Any] = {row[column] for row in ledger.rows(f"SELECT {column} FROM {table}")}
            assert stored == given, f"{table}.{column}"
    assert asks_for_the_time() == set()


ENTRY_POINTS = {"clock.py", "wiring.py", "embedded.py"}
CLOCKS = {"now", "utcnow", "today", "utc_now"}


def asks_for_the_time() -> set[str]:
    """Returns the places where code asks for the time although it gets it as an argument."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name in ENTRY_POINTS or "migrations" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.rpartition(".")[2] in CLOCKS or called in {"time.time", "time.time_ns"}:
                    found.add(f"{path.name}:{node.lineno} {called}()")
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found.add(f"{path.name}:{node.lineno} from time import")
    for place, sql in statements():
        # A part of `scheduler migrate`, and the clock of the entry points.
        if place.startswith(("worker_scheduler.ledger.trial.", "worker_scheduler.ledger.clock.")):
            continue
        # What a statement has waited is a length, not a time.
        others = sql.replace(WAITED, "")
        if re.search(r"\b(now\(\)|current_timestamp|clock_timestamp)", others, re.IGNORECASE):
            found.add(place)
    return found
