"""Whatever a host's clock says: no day is missed early, no lease is long, no pass and no job is lost."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clocks.faketime import ROOT, wrong_by
from tests.support.command_line import Outcome, as_process
from tests.support.ledger import Ledger
from tests.support.processes import Process, celery, started, worker_of
from tests.support.users import make_users
from tests.support.waiting import wait_until

LEASE_SECONDS = 2
NONE, MINUTES, MONTH = timedelta(0), timedelta(minutes=5), timedelta(days=30)
WRONG = pytest.mark.parametrize(
    "wrong", [MONTH, MINUTES, -MINUTES], ids=["30-days", "5-min", "minus-5-min"]
)


@pytest.fixture
def own(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A deployment whose daily slot was an hour ago, with short leases and intervals."""
    slot = datetime.now(UTC) - timedelta(hours=1)
    return environment | {
        "PYTHONPATH": str(ROOT),
        "SYNC_HANDLER": "tests.support.long_handlers:sleep",
        "HANDLER_FOLDER": str(tmp_path),
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "RECONCILE_INTERVAL_SECONDS": "1",
        "ENQUEUE_SLEEP_SECONDS": "0",
        "DAILY_TICK_CRON": f"{slot.minute} {slot.hour} * * *",
        "DAILY_CATCH_UP": "all",
    }


@pytest.fixture
def deployment(own: dict[str, str], ledger: Ledger) -> dict[str, str]:
    make_users(ledger.url, 3)
    ledger.execute("UPDATE sync_origin SET since = now() - interval '2 hours'")
    return own


def the_day(deployment: dict[str, str]) -> str:
    return f"daily:{(datetime.now(UTC) - timedelta(hours=1)).date()}"


def test_the_clock_of_a_process_is_wrong_and_its_monotonic_clock_is_not(own: dict[str, str]) -> None:
    """Otherwise the tests below would show nothing."""
    code = "import time; print(time.time(), time.monotonic())"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=own | wrong_by(wrong),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for wrong in (NONE, MONTH)
    ]
    (time, monotonic), (faked, faked_monotonic) = ((float(a), float(b)) for a, b in said)
    assert MONTH.total_seconds() <= faked - time < MONTH.total_seconds() + 60
    assert 0 <= faked_monotonic - monotonic < 60


@WRONG
def test_a_tick_and_a_pass_have_the_time_of_the_ledger(
    wrong: timedelta, deployment: dict[str, str], ledger: Ledger
) -> None:
    on_host = deployment | wrong_by(wrong)
    for command in (["reconcile", "--json"], ["daily", "--json"]):
        outcome = as_process(on_host, *command)
        assert outcome.status == 0, outcome
        assert outcome.stderr.count("this host's clock differs from that of Postgres") == 1
    runs = ledger.rows("SELECT * FROM sync_runs ORDER BY partition_key")
    now = datetime.now(UTC)
    expected = {the_day(deployment), f"daily:{now.date()}"}
    assert {run["partition_key"] for run in runs} == expected
    assert {run["state"] for run in runs} == {"ENQUEUED"}
    for run in runs:
        assert abs(run["created_at"] - now) < timedelta(minutes=1)
    assert ledger.count() == 3 * len(expected)


JOB_HOSTS: dict[str, tuple[timedelta, timedelta]] = {
    "worker-far-ahead": (MONTH, NONE),
    "worker-ahead": (MINUTES, NONE),
    "worker-behind": (-MINUTES, NONE),
    "reconciler-ahead": (NONE, MONTH),
}


@pytest.mark.parametrize("hosts", JOB_HOSTS.values(), ids=JOB_HOSTS)
def test_a_long_job_is_done_once_if_two_hosts_differ(
    hosts: tuple[timedelta, timedelta], deployment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    """The tick and the worker are on one host, reconcile is on another one."""
    of_worker, of_reconciler = hosts
    on_host = deployment | wrong_by(of_worker)
    assert as_process(on_host, "daily", "--date", "2026-11-23").status == 0
    longest = timedelta(0)
    with ExitStack() as stack:
        pool = ("--pool", "threads", "--concurrency", "3")
        worker = worker_of(on_host, tmp_path / "worker.log", "daily", *pool)
        stack.enter_context(_passes(deployment | wrong_by(of_reconciler), tmp_path))
        stack.enter_context(started(worker))

        def completed() -> bool:
            nonlocal longest
            leases = ledger.rows("SELECT leased_until - clock_timestamp() AS left FROM sync_jobs")
            longest = max([longest, *(row["left"] for row in leases if row["left"] is not None)])
            return dict(ledger.states("daily:2026-11-23")) == {"COMPLETED": 3}

        wait_until(completed, 30, "three jobs done")
        assert worker.running
    jobs = ledger.jobs("daily:2026-11-23")
    assert {job["attempt"] for job in jobs} == {1}
    assert timedelta(0) < longest <= timedelta(seconds=LEASE_SECONDS + 0.5)
    now = datetime.now(UTC)
    for job in jobs:
        for column in ("created_at", "started_at", "completed_at"):
            assert abs(job[column] - now) < timedelta(minutes=1)
    named = worker.log().count("this host's clock differs from that of Postgres")
    assert named == (1 if of_worker else 0)


@contextmanager
def _passes(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Runs one reconcile pass after the other while the block runs; the first has ended before."""
    code = (
        "import time; from tests.support.command_line import in_this_process;"
        "from itertools import count;"
        "[(in_this_process('reconcile'), print('passed', flush=True), time.sleep(0.2)) for _ in count()]"
    )
    process = Process([sys.executable, "-c", code], environment, folder / "passes.log")
    with started(process):
        process.wait_for_log("passed")
        yield


PASS_HOSTS: dict[str, tuple[timedelta, timedelta]] = {
    "beat-far-ahead": (MONTH, NONE),
    "worker-ahead": (NONE, MINUTES),
    "beat-behind-and-worker-ahead": (-MINUTES, MINUTES),
}


@pytest.mark.parametrize("hosts", PASS_HOSTS.values(), ids=PASS_HOSTS)
def test_no_pass_is_dropped_because_two_hosts_differ(
    hosts: tuple[timedelta, timedelta], deployment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    of_beat, of_worker = hosts
    beat = celery(deployment | wrong_by(of_beat), tmp_path / "beat.log", "beat", "--loglevel", "INFO")
    worker = worker_of(deployment | wrong_by(of_worker), tmp_path / "worker.log", "scheduler")
    begun: set[Any] = set()

    def passes() -> bool:
        rows = ledger.rows("SELECT begun_at FROM sync_passes WHERE name = 'reconcile'")
        begun.update(row["begun_at"] for row in rows)
        return len(begun) >= 3

    with started(beat), started(worker):
        wait_until(passes, 40, f"three passes, not {begun}: {worker.log()}")
    now = datetime.now(UTC)
    assert all(abs(at - now) < timedelta(minutes=1) for at in begun)
    states = {row["partition_key"]: row["state"] for row in ledger.rows("SELECT * FROM sync_runs")}
    assert states == {the_day(deployment): "ENQUEUED"}


@WRONG
def test_check_warns_about_the_host(wrong: timedelta, deployment: dict[str, str]) -> None:
    outcome = as_process(deployment | wrong_by(wrong), "check")
    assert outcome.status == 0, outcome
    (line,) = (line for line in outcome.stdout.splitlines() if " clock: " in line)
    said = re.fullmatch(r"warn  clock: this host is ([\d.]+) s (ahead of|behind) Postgres: .*", line)
    assert said is not None, line
    assert said[2] == ("ahead of" if wrong > NONE else "behind")
    assert abs(float(said[1]) - abs(wrong).total_seconds()) < 2


def test_check_says_how_right_a_host_is(deployment: dict[str, str]) -> None:
    outcome: Outcome = as_process(deployment, "check")
    assert "ok    clock: this host differs from Postgres by 0." in outcome.stdout
