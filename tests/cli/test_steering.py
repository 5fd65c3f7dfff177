"""`scheduler pause`, `resume` and `cancel`: what starts afterwards, and what is recorded."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler import wiring
from worker_scheduler.worker import SkipJob, SyncJob

Scheduler = Callable[..., Outcome]
DAY = "2026-11-24"
KEY = f"daily:{DAY}"


@pytest.fixture
def served(ledger: Ledger, scheduler: Scheduler, deployed: None) -> Iterator[list[str]]:
    """The users whose handler is called, in a run of six."""
    make_users(ledger.url, 6)
    assert scheduler("daily", "--date", DAY).status == 0
    yield []


def take_every_message(ledger: Ledger, served: list[str]) -> None:
    """As workers do which get the messages of all jobs, also of those that have ended."""

    def handle(job: SyncJob) -> None:
        served.append(job.github_login or "")

    wiring.process_worker().stopped_runs.forget()  # it looks once a second
    for job in ledger.jobs(KEY):
        wiring.process_worker().run(job["job_id"], handle)


def requests(ledger: Ledger) -> list[tuple[Any, ...]]:
    rows = ledger.rows("SELECT * FROM sync_requests ORDER BY requested_at")
    return [
        (row["verb"], row["partition_key"], row["actor"], row["reason"], row["outcome"]) for row in rows
    ]


def test_no_job_of_a_paused_run_starts_until_it_is_resumed(
    ledger: Ledger, broker: Broker, scheduler: Scheduler, served: list[str]
) -> None:
    paused = scheduler("pause", KEY, "--reason", "the API is down", "--actor", "ann")
    assert (paused.status, paused.errors) == (0, [])
    assert paused.stdout.startswith(f"{KEY}: paused: no job starts later than 5 s from now")
    take_every_message(ledger, served)
    assert served == []
    assert ledger.states(KEY) == {"PENDING": 6}
    assert {job["not_before"].year for job in ledger.jobs(KEY)} == {9999}
    assert scheduler("reconcile").status == 0
    assert {job["not_before"].year for job in ledger.jobs(KEY)} == {9999}

    before = broker.count("daily")
    resumed = scheduler("resume", KEY)
    assert resumed.stdout == f"{KEY}: resumed: 6 parked jobs are due, and reconcile sends them in batches\n"
    assert scheduler("reconcile").status == 0
    assert broker.count("daily") == before + 6
    take_every_message(ledger, served)
    assert len(served) == len(set(served)) == 6
    assert ledger.states(KEY) == {"COMPLETED": 6}
    assert {job["attempt"] for job in ledger.jobs(KEY)} == {1}
    paused_row, resumed_row = requests(ledger)[-2:]
    assert paused_row == ("pause", KEY, "ann", "the API is down", "paused")
    assert (resumed_row[0], "@" in resumed_row[2], resumed_row[4]) == ("resume", True, "resumed")


def test_a_pause_ends_by_itself(ledger: Ledger, scheduler: Scheduler, served: list[str]) -> None:
    assert scheduler("pause", KEY, "--until", "1s").status == 0
    take_every_message(ledger, served)
    assert served == []
    time.sleep(1.1)  # the pause
    assert scheduler("reconcile").status == 0
    take_every_message(ledger, served)
    assert len(served) == 6
    assert ledger.value("SELECT paused_at IS NULL FROM sync_runs")


def test_a_cancelled_run_ends_and_starts_no_job(
    ledger: Ledger, scheduler: Scheduler, served: list[str]
) -> None:
    cancelled = scheduler("cancel", KEY, "--json")
    assert cancelled.report == {"verb": "cancel", "partition_key": KEY, "outcome": "cancelled", "jobs": 6}
    take_every_message(ledger, served)
    assert served == []
    assert ledger.states(KEY) == {"SKIPPED": 6}
    assert {job["reason_class"] for job in ledger.jobs(KEY)} == {"cancelled"}
    run = ledger.row("SELECT * FROM sync_runs")
    assert (run["state"], run["completed"], run["skipped"], run["cancelled"]) == ("FINISHED", 0, 6, 6)
    assert ledger.value("SELECT count(*) FROM sync_job_events WHERE event = 'cancelled'") == 6
    again = scheduler("cancel", KEY)
    assert (again.status, again.stdout.split(": ")[1]) == (0, "was cancelled before")


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_triggering_a_stopped_partition_is_refused_and_names_the_way_on(
    verb: str, scheduler: Scheduler, served: list[str]
) -> None:
    assert scheduler(verb, KEY).status == 0
    refused = scheduler("daily", "--date", DAY)
    way = f"scheduler resume {KEY}" if verb == "pause" else f"scheduler retry {KEY} --only cancelled"
    assert refused.status == 3
    assert way in refused.error


def test_an_unknown_key_gets_the_nearest_three(scheduler: Scheduler, served: list[str]) -> None:
    for verb in ("pause", "resume", "cancel"):
        refused = scheduler(verb, "daily:2026-11-25")
        assert (refused.status, refused.stdout) == (2, "")
        assert f"there is no run of 'daily:2026-11-25': the nearest are {KEY}" in refused.error


def test_what_has_ended_is_refused_and_the_refusal_recorded(
    ledger: Ledger, scheduler: Scheduler, served: list[str]
) -> None:
    take_every_message(ledger, served)
    assert scheduler("reconcile").status == 0
    for verb in ("pause", "cancel"):
        refused = scheduler(verb, KEY)
        assert (refused.status, f"{KEY} is FINISHED" in refused.error) == (3, True)
        assert requests(ledger)[-1][0::4] == (verb, "refused")


@pytest.fixture
def failed(ledger: Ledger, scheduler: Scheduler, served: list[str]) -> Ledger:
    """The run is FINISHED: two users' jobs have failed, with different errors, and one was skipped."""

    def handle(job: SyncJob) -> None:
        if job.github_login in {"user-1", "user-2"}:
            raise RuntimeError(f"no token for {job.github_login}")
        if job.github_login == "user-3":
            raise SkipJob("suspended")

    for job in ledger.jobs(KEY):
        wiring.process_worker().run(job["job_id"], handle)
    assert scheduler("reconcile").status == 0
    assert ledger.value("SELECT state FROM sync_runs") == "FINISHED"
    return ledger


def test_a_retry_gives_failed_jobs_a_fresh_budget_and_no_others(
    failed: Ledger, scheduler: Scheduler, served: list[str]
) -> None:
    first = failed.row("SELECT * FROM sync_runs")
    retried = scheduler("retry", KEY, "--only", "failed", "--json")
    assert retried.report == {"verb": "retry", "partition_key": KEY, "outcome": "retried", "jobs": 2}
    assert failed.states(KEY) == {"COMPLETED": 3, "PENDING": 2, "SKIPPED": 1}
    assert failed.value("SELECT state FROM sync_runs") == "ENQUEUED"
    for job in failed.rows("SELECT * FROM sync_jobs WHERE status = 'PENDING'"):
        assert (job["attempt"], job["attempts_allowed"], job["reason_class"]) == (1, 4, None)
    take_every_message(failed, served)
    assert sorted(served) == ["user-1", "user-2"]
    assert scheduler("reconcile").status == 0
    run = failed.row("SELECT * FROM sync_runs")
    assert (run["state"], run["completed"], run["failed"]) == ("FINISHED", 5, 0)
    assert (run["first_completed"], run["first_failed"], run["first_skipped"]) == (3, 2, 1)
    assert run["first_finished_at"] == first["finished_at"]
    assert scheduler("retry", KEY, "--only", "failed", "--json").report["jobs"] == 0


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["--error-like", "TOKEN for user-1"], 1),
        (["--error-like", "100%"], 0),
        (["--limit", "1"], 1),
    ],
    ids=str,
)
def test_a_retry_takes_exactly_what_matches(
    arguments: list[str], jobs: int, failed: Ledger, scheduler: Scheduler
) -> None:
    assert scheduler("retry", KEY, "--only", "failed", *arguments, "--json").report["jobs"] == jobs
    assert failed.states(KEY).get("PENDING", 0) == jobs


def test_cancelled_jobs_come_back_by_retry_alone(
    ledger: Ledger, scheduler: Scheduler, served: list[str]
) -> None:
    assert scheduler("cancel", KEY).status == 0
    refused = scheduler("resume", KEY)
    assert (refused.status, f"retry {KEY} --only cancelled" in refused.error) == (3, True)
    assert scheduler("retry", KEY, "--only", "failed").status == 3
    assert scheduler("retry", KEY, "--only", "cancelled", "--json").report["jobs"] == 6
    take_every_message(ledger, served)
    assert len(served) == 6


def test_more_jobs_than_the_limit_need_a_confirmation(
    failed: Ledger, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKFILL_MAX_USERS", "1")
    refused = scheduler("retry", KEY, "--only", "failed")
    assert (refused.status, "--confirm" in refused.error) == (3, True)
    assert scheduler("retry", KEY, "--only", "failed", "--confirm", "--json").report["jobs"] == 2
