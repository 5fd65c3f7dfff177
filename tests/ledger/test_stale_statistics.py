"""Steps over many jobs are as fast with statistics that are older than the jobs as with new ones.

Autovacuum renews statistics when a tenth of a table has changed: in the table of an older scheduler with
many rows, days after a run was made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, event

from tests.support import attempts
from tests.support.databases import new_database, url_of
from tests.support.open_runs import JOBS_PER_BATCH, NOW, SENT_IN, OpenRun, fill, migrate
from worker_scheduler import embedded
from worker_scheduler.ledger import (
    backoff,
    batches,
    dead_workers,
    jobs,
    rescue,
    run_ends,
    suspects,
    waiting_jobs,
)
from worker_scheduler.ledger.attempts import ClaimedJob
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.rescue import DueJob
from worker_scheduler.ledger.tables import JobStatus, Kind
from worker_scheduler.ledger.waiting_jobs import WaitingJob

pytestmark = pytest.mark.slow

UNTIL = NOW + timedelta(seconds=40)
PAST = NOW - timedelta(minutes=1)
STEP = 100

WAITING = OpenRun("waiting", 10_000)
DUE = OpenRun("due", 3000, {"not_before": PAST})
ALONE = OpenRun("alone", 3000, {"republished_in": SENT_IN, "republished_at": PAST})
FEW_ALONE = OpenRun("few alone", 500, {"republished_in": SENT_IN, "republished_at": PAST})
RUNNING = OpenRun("running", STEP, {"status": "RUNNING", "attempt": 1, "leased_until": PAST})
UNSENT = OpenRun("unsent", 4000, sent=False, run_state="DISPATCHING")
RUNS = [WAITING, DUE, ALONE, FEW_ALONE, RUNNING, UNSENT]
EARLIER = [OpenRun("earlier", 5000, {"status": "COMPLETED"}, run_state="FINISHED")]
# Of which time the statistics are, by the kind of the table: earlier runs, and rows of an older scheduler.
LEDGERS = {
    "divided, an empty table": ([], 0),
    "divided, an earlier run": (EARLIER, 0),
    "adopted, older rows": ([], 300),
    "adopted, an earlier run": (EARLIER, 1),
}


@dataclass(frozen=True)
class OpenLedger:
    """A database with RUNS, in which nothing is left changed."""

    divided: bool
    name: str
    database: Database


@contextmanager
def opened(servers: embedded.Servers, name: str) -> Iterator[Database]:
    url = url_of(servers.database_url, name)
    database = Database(url.replace("postgresql:", "postgresql+psycopg:", 1))
    yield database
    database.dispose()


@pytest.fixture(scope="module", params=LEDGERS)
def ledger(request: pytest.FixtureRequest, servers: embedded.Servers) -> Iterator[OpenLedger]:
    """With statistics that are older than RUNS."""
    earlier, older_rows = LEDGERS[request.param]
    with new_database(servers.database_url) as name:
        fill(migrate(servers.database_url, name, older_rows), earlier, RUNS)
        with opened(servers, name) as database:
            yield OpenLedger(not older_rows, name, database)


Prepare = Callable[[Connection], Any]
Call = Callable[[Connection, Any], object]


def nothing(_connection: Connection) -> None:
    """What a step gets that finds its jobs by itself."""


@dataclass(frozen=True)
class Step:
    """A call into the ledger. prepare: what it gets. run: that of its jobs, None if it is not known."""

    call: Call
    prepare: Prepare = nothing
    run: OpenRun | None = None
    jobs: int = STEP


# Everywhere in the run.
CHOSEN = range(1, WAITING.jobs, WAITING.jobs // STEP)
SOME_WAITING = [WaitingJob(WAITING.job_id(n), (n - 1) // JOBS_PER_BATCH, 0) for n in CHOSEN]
ATTEMPTS = [
    ClaimedJob(RUNNING.job_id(n), RUNNING.run_id, uuid4(), None, "", "", None, 1)
    for n in range(1, STEP + 1)
]
SUSPECTED = [ALONE.job_id(n) for n in range(1, STEP + 1)]


def taken(connection: Connection) -> list[DueJob]:
    return rescue.take_due(connection, Kind.DAILY, now=NOW, leased_until=UNTIL, limit=STEP)


def page_alone(connection: Connection, run: OpenRun) -> list[WaitingJob]:
    """The first page behind those of batches."""
    first = WaitingJob(UUID(int=0), None, 0)
    return waiting_jobs.page(connection, run.run_id, cutoff=NOW, after=first, limit=STEP)


def suspected(connection: Connection) -> None:
    connection.exec_driver_sql(
        "INSERT INTO sync_suspects (job_id, run_id, queue, attempt, suspected_at)"
        " SELECT job_id, run_id, 'daily', 0, now() FROM sync_jobs WHERE attempt = 0 AND run_id IS NOT NULL"
    )


def first_page(connection: Connection) -> dead_workers.Page:
    (page,) = dead_workers.expired(connection, NOW)
    return page


STEPS: dict[str, Step] = {
    "take_due": Step(lambda connection, _: taken(connection)),
    "mark_published": Step(
        lambda connection, due: rescue.mark_published(
            connection, [(job, SENT_IN) for job in due], UNTIL, NOW
        ),
        taken,
        DUE,
    ),
    "backoff.put_off": Step(
        lambda connection, due: backoff.put_off(connection, due, UNTIL, UNTIL), taken, DUE
    ),
    "mark_lost_with_data": Step(
        lambda connection, _: rescue.mark_lost_with_data(
            connection, run_id=ALONE.run_id, lost=[SENT_IN], now=NOW, limit=STEP
        ),
        run=ALONE,
    ),
    "page of batches": Step(
        lambda connection, _: waiting_jobs.page(
            connection, WAITING.run_id, cutoff=NOW, after=None, limit=STEP
        ),
        run=WAITING,
    ),
    "page of many alone": Step(lambda connection, _: page_alone(connection, ALONE), run=ALONE, jobs=300),
    "page of few alone": Step(
        lambda connection, _: page_alone(connection, FEW_ALONE), run=FEW_ALONE, jobs=FEW_ALONE.jobs
    ),
    "page of none alone": Step(lambda connection, _: page_alone(connection, WAITING), run=WAITING, jobs=1),
    "still_waiting": Step(
        lambda connection, _: waiting_jobs.still_waiting(
            connection, WAITING.run_id, SOME_WAITING, [NOW] * len(SOME_WAITING)
        ),
        run=WAITING,
    ),
    "number_running": Step(
        lambda connection, _: waiting_jobs.number_running(
            connection, [RUNNING.run_id], [str(attempt.job_id) for attempt in ATTEMPTS]
        ),
        run=RUNNING,
    ),
    "make_due": Step(
        lambda connection, _: waiting_jobs.make_due(
            connection, WAITING.run_id, SOME_WAITING, [NOW] * len(SOME_WAITING), NOW
        ),
        run=WAITING,
    ),
    "note suspects": Step(
        lambda connection, _: suspects.note(connection, WAITING.run_id, "daily", SOME_WAITING, NOW)
    ),
    "page of suspects": Step(
        lambda connection, _: suspects.page(connection, ALONE.run_id, after=UUID(int=0), limit=STEP),
        suspected,
    ),
    "mark_missed": Step(lambda connection, _: suspects.mark_missed(connection, SUSPECTED, NOW), suspected),
    "drop suspects": Step(lambda connection, _: suspects.drop(connection, SUSPECTED), suspected),
    "expired": Step(lambda connection, _: dead_workers.expired(connection, NOW)),
    "still_expired": Step(dead_workers.still_expired, first_page),
    "rescue": Step(
        lambda connection, page: dead_workers.rescue(connection, page, now=NOW, max_attempts=2),
        first_page,
    ),
    "give_up": Step(
        lambda connection, page: dead_workers.give_up(connection, page, now=NOW, max_attempts=1),
        first_page,
    ),
    "claim batches": Step(
        lambda connection, _: batches.claim(
            connection, UNSENT.run_id, uuid4(), limit=10, now=NOW, claimed_until=UNTIL
        ),
        run=UNSENT,
        jobs=1000,
    ),
    "put_back_lost": Step(
        lambda connection, _: batches.put_back_lost(connection, WAITING.run_id, [SENT_IN], uuid4()),
        run=WAITING,
        jobs=WAITING.jobs // JOBS_PER_BATCH,
    ),
    "has open jobs": Step(
        lambda connection, _: run_ends.finish(connection, WAITING.run_id, NOW), run=WAITING, jobs=1
    ),
    "claim": Step(
        lambda connection, _: attempts.claim(connection, WAITING.job_id(WAITING.jobs), NOW, UNTIL),
        run=WAITING,
        jobs=1,
    ),
    "finish": Step(
        lambda connection, _: attempts.finish(connection, ATTEMPTS[-1], JobStatus.COMPLETED, None, NOW),
        run=RUNNING,
        jobs=1,
    ),
    "jobs.put_off": Step(
        lambda connection, _: attempts.put_off(
            connection, ATTEMPTS[-1], error_message=None, not_before=UNTIL
        ),
        run=RUNNING,
        jobs=1,
    ),
    "extend_leases": Step(
        lambda connection, _: jobs.extend_leases(connection, ATTEMPTS, UNTIL), run=RUNNING
    ),
}


@contextmanager
def prepared(database: Database, step: Step) -> Iterator[tuple[Connection, Callable[[], object]]]:
    """A call of the step, in a transaction that is rolled back."""
    with database.transaction() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = '2s'")
        given = step.prepare(connection)
        connection.exec_driver_sql("SET LOCAL enable_sort = on")
        yield connection, lambda: step.call(connection, given)
        connection.rollback()


def scans_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node that reads rows of a table, with how many it read in all its loops."""
    if "Relation Name" in plan and plan["Node Type"] != "ModifyTable":
        removed = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
        yield {**plan, "read": plan["Actual Loops"] * (plan["Actual Rows"] + removed)}
    for child in plan.get("Plans", []):
        yield from scans_of(child)


def plans_of(connection: Connection, call: Callable[[], object]) -> list[dict[str, Any]]:
    """What each statement of the call does, by EXPLAIN ANALYZE right before it."""
    plans: list[dict[str, Any]] = []

    def explain(_: object, cursor: Any, statement: str, parameters: Any, *__: object) -> None:
        if not statement.lstrip().startswith("SET "):
            cursor.execute("SAVEPOINT before")
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])
            cursor.execute("ROLLBACK TO SAVEPOINT before")

    event.listen(connection, "before_cursor_execute", explain)
    call()
    event.remove(connection, "before_cursor_execute", explain)
    return plans


@pytest.mark.parametrize("name", STEPS)
def test_a_step_reads_only_its_own_rows_in_one_partition(name: str, ledger: OpenLedger) -> None:
    """By an index; no subquery is read again for each row, and no run for each job."""
    step = STEPS[name]
    with prepared(ledger.database, step) as (connection, call):
        scans = [scan for plan in plans_of(connection, call) for scan in scans_of(plan)]
    read = sum(scan["read"] for scan in scans)
    assert read <= 10 * step.jobs + 100, [(scan["Node Type"], scan["read"]) for scan in scans]
    tables = {scan["Relation Name"] for scan in scans if scan["Relation Name"].startswith("sync_jobs")}
    if step.run and ledger.divided:
        assert len(tables) == 1
        assert tables != {"sync_jobs_monthless"}


def test_steps_are_as_fast_as_with_statistics_of_their_rows(
    ledger: OpenLedger, servers: embedded.Servers
) -> None:
    def seconds(database: Database) -> dict[str, float]:
        return {name: min(seconds_of(database, step) for _ in range(3)) for name, step in STEPS.items()}

    ledger.database.dispose()  # a database in use cannot be copied
    with new_database(servers.database_url, ledger.name) as copy, opened(servers, copy) as database:
        stale = seconds(database)
        with database.autocommit() as connection:
            connection.exec_driver_sql("ANALYZE sync_jobs, sync_batches, sync_runs")
        fresh = seconds(database)
    slow = {name: (stale[name], fresh[name]) for name in STEPS if stale[name] > 3 * fresh[name] + 0.05}
    assert slow == {}


def seconds_of(database: Database, step: Step) -> float:
    with prepared(database, step) as (_, call):
        began = perf_counter()
        call()
        return perf_counter() - began
