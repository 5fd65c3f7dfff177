"""Samples cost what open and failed jobs cost, and the rate of jobs follows from them."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.ledger.test_stale_statistics import opened, plans_of, scans_of
from tests.support.contexts import INSTANT, NOON
from tests.support.databases import new_database
from tests.support.ledger import Ledger
from tests.support.open_runs import NOW, OpenRun, fill, migrate
from worker_scheduler import embedded
from worker_scheduler.ledger import samples
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.tables import Kind

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)

RUN = OpenRun("done", 20_000, {"status": "COMPLETED"})
EARLIER = [OpenRun("earlier", 5000, {"status": "COMPLETED"}, run_state="FINISHED")]
# Of RUN, by the number of the job: what most of the jobs are not.
WAITING, RUNNING, FAILED = (1, 200), (301, 350), (401, 500)
NOT_COMPLETED = 200 + 50 + 100


def change(ledger: Ledger, numbers: tuple[int, int], **columns: str) -> None:
    first, last = (RUN.job_id(number) for number in numbers)
    assignments = ", ".join(f"{column} = {value}" for column, value in columns.items())
    ledger.execute(f"UPDATE sync_jobs SET {assignments} WHERE job_id BETWEEN '{first}' AND '{last}'")


@pytest.mark.slow
@pytest.mark.parametrize("older_rows", [0, 300])
@pytest.mark.parametrize("earlier", [[], EARLIER])
@pytest.mark.parametrize("analyzed", [False, True])
def test_samples_read_no_job_that_has_completed(
    older_rows: int, earlier: list[OpenRun], analyzed: bool, servers: embedded.Servers
) -> None:
    """With statistics of any age, on a divided and an undivided table: by small indexes only."""
    with new_database(servers.database_url) as name:
        url = migrate(servers.database_url, name, older_rows)
        fill(url, earlier, [RUN])
        ledger = Ledger(url)
        change(ledger, WAITING, status="'PENDING'")
        change(ledger, RUNNING, status="'RUNNING'", leased_until="now()")
        change(ledger, FAILED, status="'FAILED'", reason_class="'builtins.ValueError'")
        if analyzed:
            ledger.execute("ANALYZE sync_jobs, sync_runs")
        with opened(servers, name) as database, database.transaction() as connection:
            plans = plans_of(connection, lambda: samples.note_runs(connection, NOW))
        row = ledger.row("SELECT * FROM sync_run_samples")
    assert (row["pending"], row["running"], row["failed"]) == (200, 50, 100)
    scans = [scan for plan in plans for scan in scans_of(plan)]
    of_jobs = [scan for scan in scans if scan["Relation Name"].startswith("sync_jobs")]
    read = {scan.get("Index Name"): scan["read"] for scan in of_jobs if scan["read"]}
    assert len(read) == 3, read
    assert sum(scan["read"] for scan in of_jobs) <= NOT_COMPLETED + 50, read


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    yield database
    database.dispose()


@pytest.fixture
def run_ids(ledger: Ledger) -> dict[str, UUID]:
    """Two runs of the day and one backfill."""
    run_ids = {"daily": uuid4(), "another": uuid4(), "backfill": uuid4()}
    for name, run_id in run_ids.items():
        kind = "backfill" if name == "backfill" else "daily"
        ledger.execute(
            "INSERT INTO sync_runs (run_id, partition_key, kind, triggered_by, state, created_at)"
            f" VALUES ('{run_id}', '{name}', '{kind}', 'test', 'ENQUEUED', '{NOON}')"
        )
    return run_ids


def add(ledger: Ledger, run_id: UUID, minutes: float, **counts: int) -> None:
    """A sample that many minutes before noon."""
    given: dict[str, Any] = {"pending": 0, "running": 0, "failed": 0, "skipped": 0, "cancelled": 0} | counts
    ledger.execute(
        f"INSERT INTO sync_run_samples (run_id, sampled_at, jobs, {', '.join(given)})"
        f" VALUES ('{run_id}', '{NOON - minutes * MINUTE}', 10000, {', '.join(map(str, given.values()))})"
    )


def rate(database: Database, kind: Kind = Kind.DAILY) -> float | None:
    with database.autocommit() as connection:
        return samples.jobs_per_second(connection, kind, NOON)


def test_without_samples_no_rate_is_known(
    database: Database, ledger: Ledger, run_ids: dict[str, UUID]
) -> None:
    assert rate(database) is None
    add(ledger, run_ids["daily"], 1, pending=5)
    assert rate(database) is None


def test_the_rate_is_that_of_the_time_in_which_jobs_waited(
    database: Database, ledger: Ledger, run_ids: dict[str, UUID]
) -> None:
    add(ledger, run_ids["daily"], 9, pending=9000, running=10)
    add(ledger, run_ids["daily"], 8, pending=3000, running=10)  # 6,000 a minute
    add(ledger, run_ids["daily"], 6, pending=600, running=10)  # 2,400 in two minutes
    add(ledger, run_ids["daily"], 5)  # the end: the workers had nothing to do for some of the time
    assert rate(database) == pytest.approx(8400 / 180)
    assert rate(database, Kind.BACKFILL) is None


def test_two_runs_at_once_share_the_workers(
    database: Database, ledger: Ledger, run_ids: dict[str, UUID]
) -> None:
    for name in ("daily", "another", "backfill"):
        add(ledger, run_ids[name], 2, pending=9000)
        add(ledger, run_ids[name], 1, pending=8400)
    assert rate(database) == pytest.approx(1200 / 60)
    assert rate(database, Kind.BACKFILL) == pytest.approx(600 / 60)


def test_time_in_which_nobody_worked_does_not_count(
    database: Database, ledger: Ledger, run_ids: dict[str, UUID]
) -> None:
    """Such as of a paused run."""
    for minutes, pending in ((9, 9000), (8, 8400), (7, 8400), (2, 8400)):
        add(ledger, run_ids["daily"], minutes, pending=pending)
    assert rate(database) == pytest.approx(600 / 60)


def test_time_in_which_long_jobs_run_counts(
    database: Database, ledger: Ledger, run_ids: dict[str, UUID]
) -> None:
    for minutes, pending in ((9, 9000), (8, 9000), (7, 8940)):
        add(ledger, run_ids["daily"], minutes, pending=pending, running=60)
    assert rate(database) == pytest.approx(60 / 120)


def test_cancelled_jobs_were_not_done(database: Database, ledger: Ledger, run_ids: dict[str, UUID]) -> None:
    add(ledger, run_ids["daily"], 2, pending=9000, running=1)
    add(ledger, run_ids["daily"], 1, pending=2000, running=1, skipped=6940, cancelled=6940)
    assert rate(database) == pytest.approx(60 / 60)


def test_a_retry_takes_nothing_away(database: Database, ledger: Ledger, run_ids: dict[str, UUID]) -> None:
    for minutes, pending in ((4, 600), (3, 540), (2, 5000), (1, 4940)):
        add(ledger, run_ids["daily"], minutes, pending=pending, running=1)
    assert rate(database) == pytest.approx(120 / 180)


@pytest.mark.parametrize(
    ("age", "known"), [(timedelta(hours=24) - INSTANT, True), (timedelta(hours=24), False)]
)
def test_the_rate_is_that_of_the_last_24_hours(
    age: timedelta, known: bool, database: Database, ledger: Ledger, run_ids: dict[str, UUID]
) -> None:
    add(ledger, run_ids["daily"], age / MINUTE, pending=9000)
    add(ledger, run_ids["daily"], age / MINUTE - 1, pending=8400)
    assert (rate(database) is not None) == known
