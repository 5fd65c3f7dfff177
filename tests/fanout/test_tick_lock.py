"""The lock of daily ticks and of backfills. It avoids duplicate work; correctness does not depend on it."""

import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.herd import run_herd
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, started
from tests.support.users import make_users
from tests.support.waiting import wait_until
from worker_scheduler.clock import utc_now
from worker_scheduler.fanout.tick_lock import TickLock
from worker_scheduler.leases import Lease
from worker_scheduler.ledger.database import Database

Scheduler = Callable[..., Outcome]

DAILY_LOCK, BACKFILL_LOCK = 0x7761766501, 0x7761766502
DAY = "2026-11-23"
KEY = f"daily:{DAY}"


def hold_lock(ledger: Ledger, lock_id: int, partition_key: str, seconds_left: float = 30) -> None:
    ledger.execute(
        "INSERT INTO sync_locks (lock_id, holder, partition_key, acquired_at, leased_until) VALUES"
        f" ({lock_id}, gen_random_uuid(), '{partition_key}', '2026-11-23 02:00:00Z',"
        f" now() + interval '{seconds_left} seconds')"
    )


def make_leases_older(ledger: Ledger, seconds: int) -> None:
    """Makes the leases look as if their holder had been killed `seconds` ago."""
    ledger.execute(
        f"UPDATE sync_locks SET leased_until = leased_until - interval '{seconds} seconds'",
        f"UPDATE sync_batches SET claimed_until = claimed_until - interval '{seconds} seconds'",
        f"UPDATE sync_runs SET leased_until = leased_until - interval '{seconds} seconds'",
    )


def test_a_second_tick_of_the_same_partition_joins_the_first(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 2)
    hold_lock(ledger, DAILY_LOCK, KEY)
    locks = ledger.rows("SELECT * FROM sync_locks")
    outcome = scheduler("daily", "--date", DAY, "--json")
    assert (outcome.status, outcome.errors) == (0, [])
    report = outcome.report
    assert (report["outcome"], report["users_total_selected"]) == ("joined", 2)
    assert report["jobs_inserted"] == report["jobs_enqueued"] == report["batches"] == 0
    assert report["running_since"] == "2026-11-23T02:00:00+00:00"
    assert report["unused_options"] == []
    assert "error" not in report
    # It has only stored what was asked for.
    run = ledger.row("SELECT run_id::text, state, leased_until > now() AS leased FROM sync_runs")
    assert run == {"run_id": report["run_id"], "state": "PLANNING", "leased": True}
    assert ledger.rows("SELECT * FROM sync_locks") == locks
    assert ledger.count() == 0
    assert broker.everything() == {}


def test_a_dry_run_joins_nothing(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 2)
    hold_lock(ledger, DAILY_LOCK, KEY)
    before = ledger.everything()
    outcome = scheduler("daily", "--date", DAY, "--json", "--dry-run")
    assert (outcome.status, outcome.report["outcome"]) == (0, "already_running")
    assert "error" not in outcome.report
    assert outcome.error == (
        f"a tick of {KEY} is running since 2026-11-23 02:00:00 UTC; without --dry-run, this command would"
        " add its users to that tick"
    )
    assert ledger.everything() == before
    assert broker.everything() == {}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_tick_of_another_partition_is_refused_and_names_the_running_tick(
    dry: list[str], scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 2)
    hold_lock(ledger, DAILY_LOCK, "daily:2026-11-22")
    before = ledger.everything()
    outcome = scheduler("daily", "--date", DAY, "--json", *dry)
    assert outcome.status == 3
    assert outcome.report["outcome"] == "refused"
    assert outcome.report["error"] == outcome.error
    assert "a tick of daily:2026-11-22 is running since 2026-11-23 02:00:00 UTC" in outcome.error
    assert f"{KEY} was not started" in outcome.error
    assert ledger.everything() == before
    assert broker.everything() == {}


def test_backfills_have_a_lock_of_their_own(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    hold_lock(ledger, BACKFILL_LOCK, "backfill:other")
    assert scheduler("daily", "--date", DAY).status == 0
    assert scheduler("backfill", "--backfill-days", "1").status == 3
    ledger.execute("DELETE FROM sync_locks")
    hold_lock(ledger, DAILY_LOCK, "daily:other")
    assert scheduler("backfill", "--backfill-days", "1").status == 0
    assert scheduler("daily", "--date", DAY).status == 3


@pytest.mark.parametrize("written", ["42", "0x2A", "0X2a", " 42 "])
def test_the_lock_ids_can_be_set(
    written: str, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 1)
    hold_lock(ledger, 42, "in-the-way")
    assert scheduler("daily", "--date", DAY).status == 0
    monkeypatch.setenv("SCHEDULER_DAILY_LOCK_ID", written)
    assert scheduler("daily", "--date", DAY).status == 3
    monkeypatch.delenv("SCHEDULER_DAILY_LOCK_ID")
    monkeypatch.setenv("SCHEDULER_BACKFILL_LOCK_ID", written)
    assert scheduler("backfill", "--backfill-days", "1").status == 3


def test_a_disabled_lock_is_ignored(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 2)
    hold_lock(ledger, DAILY_LOCK, KEY)
    before = ledger.rows("SELECT * FROM sync_locks")
    monkeypatch.setenv("SCHEDULER_LOCK_ENABLED", "0")
    assert scheduler("daily", "--date", DAY, "--json").report["jobs_enqueued"] == 2
    assert ledger.rows("SELECT * FROM sync_locks") == before


def test_a_tick_releases_the_lock_when_it_ends(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    scheduler("daily", "--date", DAY)
    assert ledger.rows("SELECT * FROM sync_locks") == []


@pytest.mark.parametrize(("seconds_left", "status"), [(-1.0, 0), (20.0, 3)])
def test_only_an_expired_lease_is_taken_over(
    seconds_left: float, status: int, scheduler: Scheduler, ledger: Ledger
) -> None:
    make_users(ledger.url, 1)
    hold_lock(ledger, DAILY_LOCK, "daily:2026-11-22", seconds_left)
    assert scheduler("daily", "--date", DAY, "--dry-run").status == status
    assert scheduler("daily", "--date", DAY).status == status


def test_the_holder_extends_its_lease_while_it_works(ledger: Ledger) -> None:
    database = Database(f"postgresql+psycopg://{ledger.url.partition('://')[2]}")
    lock = TickLock(database, DAILY_LOCK, KEY, utc_now, Lease(0.2))
    with database.transaction() as connection:
        assert lock.acquire(connection) is None
    with lock.hold():
        first = ledger.value("SELECT leased_until FROM sync_locks")
        longer = "SELECT leased_until > %s FROM sync_locks"
        wait_until(lambda: ledger.value(longer, first + timedelta(seconds=0.4)), 10, "a longer lease")
    database.dispose()
    assert ledger.rows("SELECT * FROM sync_locks") == []


@pytest.mark.slow
def test_the_lock_of_a_killed_tick_is_taken_over_within_60_seconds(
    environment: dict[str, str], scheduler: Scheduler, ledger: Ledger, broker: Broker, tmp_path: Path
) -> None:
    make_users(ledger.url, 30)
    command = [*("daily", "--date", DAY), *("--enqueue-batch-size", "10")]
    tick = scheduler_process(environment, tmp_path, *command, "--enqueue-sleep-seconds", "600")
    with started(tick):
        enqueued = "SELECT count(*) = 1 FROM sync_batches WHERE enqueued_at IS NOT NULL"
        wait_until(lambda: ledger.value(enqueued), 30, "the first batch")
        tick.send(signal.SIGKILL)
        tick.wait(10)
    now = datetime.now(UTC)
    assert now < ledger.value("SELECT leased_until FROM sync_locks") <= now + timedelta(seconds=60)
    assert scheduler(*command, "--json").report["outcome"] == "joined"
    make_leases_older(ledger, 60)
    report = scheduler(*command, "--json").report
    assert (report["outcome"], report["jobs_enqueued"]) == ("enqueued", 20)
    assert ledger.count(KEY) == 30
    sent = [message.task_id for message in broker.messages("daily")]
    assert sorted(sent) == [str(job["job_id"]) for job in ledger.jobs()]


def scheduler_process(environment: Mapping[str, str], folder: Path, *arguments: str) -> Process:
    return Process([sys.executable, "-m", "worker_scheduler", *arguments], environment, folder / "tick.log")


@pytest.mark.parametrize("enabled", ["1", "0"])
@pytest.mark.slow
def test_ten_ticks_at_once_give_one_job_and_one_message_per_user(
    enabled: str, environment: dict[str, str], ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 20_000)
    environment |= {
        "SCHEDULER_LOCK_ENABLED": enabled,
        "MAX_ENQUEUED_JOBS": "20000",
        "ENQUEUE_SLEEP_SECONDS": "0",
        "ENQUEUE_BATCH_SIZE": "500",
        "LOG_LEVEL": "ERROR",
    }
    outcomes = run_herd(environment, 10, "worker_scheduler.cli:run", "daily", "--date", DAY, "--json")
    assert [outcome.status for outcome in outcomes] == [0] * 10
    ended = [outcome.report["outcome"] for outcome in outcomes]
    if enabled == "1":
        # Ticks that found the lock taken joined the one that had it; those that got it later had nothing
        # to do.
        assert ended.count("enqueued") == 1
        assert set(ended) <= {"enqueued", "joined", "nothing_to_do"}
    else:
        assert set(ended) <= {"enqueued", "nothing_to_do"}
    assert sum(outcome.report["jobs_inserted"] for outcome in outcomes) == 20_000
    assert sum(outcome.report["jobs_enqueued"] for outcome in outcomes) == 20_000
    row = ledger.row("SELECT count(*) AS jobs, count(DISTINCT user_id) AS users FROM sync_jobs")
    assert (row["jobs"], row["users"]) == (20_000, 20_000)
    sent = {message.task_id for message in broker.messages("daily")}
    assert broker.count("daily") == len(sent) == 20_000
    assert sent == {str(job["job_id"]) for job in ledger.rows("SELECT job_id FROM sync_jobs")}
