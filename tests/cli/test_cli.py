"""The command `scheduler` as a program: what goes where, and with which status it ends."""

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from redis import Redis

from tests.documents.pages import page, section
from tests.support.command_line import Outcome, as_process, outcome_of
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users, user_id
from worker_scheduler.cli import application
from worker_scheduler.cli.check_redis import redis_version
from worker_scheduler.ledger.schema import NEWEST_VERSION

Scheduler = Callable[..., Outcome]
ReadOnly = Callable[[], AbstractContextManager[None]]

DAY = "2026-11-23"
KEY = f"daily:{DAY}"


def test_results_go_to_stdout_and_logs_to_stderr(environment: dict[str, str], ledger: Ledger) -> None:
    make_users(ledger.url, 3)
    outcome = as_process(environment, "daily", "--date", DAY)
    assert outcome.status == 0
    assert re.fullmatch(
        rf"{KEY}: 3 jobs written and 3 enqueued in 1 batch, for 3 users \(\d+\.\d s\)\n", outcome.stdout
    )
    assert outcome.errors == []
    (logged,) = outcome.stderr.splitlines()
    assert "INFO" in logged
    assert 'event="batch enqueued"' in logged
    assert "enqueued=3" in logged


def test_one_is_said_as_one(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 1)
    daily = ("daily", "--date", DAY)
    said = scheduler(*daily, "--dry-run").stdout
    assert "1 user selected, 1 of them without a job yet; 1 job would be enqueued" in said
    assert "1 job written and 1 enqueued in 1 batch, for 1 user (" in scheduler(*daily).stdout
    assert "nothing to do: the one user has their job (" in scheduler(*daily).stdout
    assert "users has 1 user; " in scheduler("check").stdout


def test_what_a_terminal_cannot_show_is_escaped(environment: dict[str, str]) -> None:
    outcome = as_process(environment | {"PYTHONIOENCODING": "ascii", "USERS_RELATION": '"ü"'}, "check")
    assert outcome.status == 2
    assert r"USERS_RELATION='\"\xfc\"'" in outcome.stdout.replace('"', r"\"")
    assert "Traceback" not in outcome.stderr
    outcome = as_process(environment | {"PYTHONIOENCODING": "ascii"}, "daily", "--date", "ü")
    assert (outcome.status, outcome.error[:13]) == (2, r"--date='\xfc'")


@pytest.mark.parametrize(("level", "logs"), [("INFO", True), ("warning", False)])
def test_log_level(
    level: str, logs: bool, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 1)
    monkeypatch.setenv("LOG_LEVEL", level)
    assert bool(scheduler("daily").stderr) is logs


def test_elsewhere_than_on_a_terminal_a_batch_is_a_log_line(scheduler: Scheduler, ledger: Ledger) -> None:
    make_users(ledger.url, 30)
    lines = scheduler("daily", "--enqueue-batch-size", "10").stderr.splitlines()
    assert [f"enqueued={number}" in line for number, line in zip((10, 20, 30), lines, strict=True)] == [
        True
    ] * 3


def test_on_a_terminal_there_is_a_progress_bar(environment: dict[str, str], ledger: Ledger) -> None:
    make_users(ledger.url, 30)
    environment |= {"TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", TERMINAL, sys.executable, "-m", "worker_scheduler", "daily"]
    outcome = outcome_of(command, environment)
    assert outcome.status == 0
    assert "30/30" in outcome.stdout
    assert "batch enqueued" not in outcome.stdout


# Runs its arguments in a terminal of their own, and prints what they printed there.
TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


@pytest.mark.parametrize("command", [["scheduler"], [sys.executable, "-m", "worker_scheduler"]])
def test_it_is_installed_under_both_names(command: list[str], environment: dict[str, str]) -> None:
    outcome = outcome_of([*command, "--help"], environment)
    assert outcome.status == 0
    assert outcome.stderr == ""
    assert all(name in outcome.stdout for name in ("daily", "backfill", "status", "migrate", "check"))


def test_the_page_of_commands_has_every_command_and_no_other() -> None:
    table = section(page("docs/commands.md"), "Overview")
    named = re.findall(r"^\| `scheduler ([a-z]+)", table, re.MULTILINE)
    assert sorted(named) == sorted(str(command.name) for command in application.registered_commands)


def test_without_a_command_it_shows_its_help(scheduler: Scheduler) -> None:
    outcome = scheduler()
    assert outcome.status == 2
    assert "backfill" in outcome.stdout
    assert outcome.errors == []


@pytest.mark.parametrize("command", ["daily", "backfill"])
def test_every_option_is_in_the_help(command: str, scheduler: Scheduler) -> None:
    options = [
        "--enqueue-batch-size",
        "--enqueue-sleep-seconds",
        "--max-enqueued-jobs",
        "--actor",
        "--reason",
        "--dry-run",
        "--json",
    ]
    if command == "backfill":
        options += [
            "--backfill-days",
            "--user-ids",
            "--github-logins",
            "--allow-missing",
            "--partition-key",
        ]
        options += ["--campaign", "--backfill-max-users", "--confirm"]
    else:
        options += ["--date"]
    outcome = scheduler(command, "--help")
    assert outcome.status == 0
    assert set(re.findall(r"--[a-z-]+", outcome.stdout)) == {*options, "--help"}


def test_ten_thousand_ids_on_one_command_line(environment: dict[str, str], ledger: Ledger) -> None:
    make_users(ledger.url, 10_000)
    all_ids = [str(user_id(number)) for number in range(1, 10_001)]
    # One argument holds 3,500 of them at most: that is Linux's limit, not ours.
    slices = [",".join(all_ids[start : start + 2500]) for start in range(0, 10_000, 2500)]
    repeated = [argument for part in slices for argument in ("--user-ids", part)]
    report = as_process(
        environment, "backfill", "--backfill-days=1", "--confirm", "--dry-run", "--json", *repeated
    ).report
    assert (report["users_total_selected"], report["would_insert"]) == (10_000, 10_000)


@pytest.mark.parametrize("separator", ["\n", ",", ",\n", "\r\n", " , "])
def test_a_file_of_ids(separator: str, scheduler: Scheduler, ledger: Ledger, tmp_path: Path) -> None:
    make_users(ledger.url, 5)
    file = tmp_path / "ids.txt"
    file.write_text(separator.join(str(user_id(number)) for number in range(1, 5)) + "\n\n")
    named = ["--user-ids", f"@{file}", "--user-ids", str(user_id(5))]
    report = scheduler("backfill", "--backfill-days=1", "--json", *named).report
    assert report["users_total_selected"] == 5


class TestStatus:
    """`scheduler status`."""

    def test_a_run_by_state(self, scheduler: Scheduler, ledger: Ledger) -> None:
        make_users(ledger.url, 5)
        scheduler("daily", "--date", DAY)
        for number, state in enumerate(("RUNNING", "COMPLETED", "FAILED", "SKIPPED"), start=1):
            ledger.execute(f"UPDATE sync_jobs SET status = '{state}' WHERE user_id = '{user_id(number)}'")
        outcome = scheduler("status", KEY)
        assert (outcome.status, outcome.stderr) == (0, "")
        assert KEY in outcome.stdout
        for state in ("PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED"):
            assert f"{state} 1" in outcome.stdout
        report = scheduler("status", KEY, "--json").report
        assert report["partition_key"] == KEY
        assert report["state"] == "ENQUEUED"
        assert set(report["jobs"].values()) == {1}

    def test_the_latest_runs(self, scheduler: Scheduler, ledger: Ledger) -> None:
        make_users(ledger.url, 1)
        for day in range(1, 13):
            scheduler("daily", "--date", f"2026-11-{day:02}")
        lines = scheduler("status").stdout.splitlines()
        assert [line.split()[0] for line in lines] == [
            f"daily:2026-11-{day:02}" for day in range(12, 2, -1)
        ]

    def test_what_was_not_enqueued(self, scheduler: Scheduler, ledger: Ledger) -> None:
        make_users(ledger.url, 30)
        scheduler("daily", "--date", DAY, "--enqueue-batch-size", "10")
        ledger.execute("UPDATE sync_batches SET enqueued_at = NULL WHERE number = 2")
        assert "not enqueued yet: 10" in scheduler("status", KEY).stdout

    def test_no_runs_yet(self, scheduler: Scheduler) -> None:
        assert scheduler("status").stdout == "no runs yet\n"

    def test_an_unknown_run(self, scheduler: Scheduler) -> None:
        outcome = scheduler("status", KEY)
        assert outcome.status == 3
        assert f"there is no run of {KEY}" in outcome.error


class TestCheck:
    """`scheduler check`: one line per part, and what to do about each fault."""

    def test_all_is_well(
        self, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_users(ledger.url, 7)
        monkeypatch.setenv("SYNC_HANDLER", "not.imported:here")
        outcome = scheduler("check")
        assert (outcome.status, outcome.stderr) == (0, "")
        lines = dict(line.removeprefix("ok").strip().split(": ", 1) for line in outcome.stdout.splitlines())
        assert set(lines) >= {
            *("configuration", "Postgres", "schema", "users", "Redis", "Redis eviction", "broker", "beat")
        }
        assert NEWEST_VERSION in lines["schema"]
        assert "7 users" in lines["users"]
        assert "noeviction" in lines["Redis eviction"]
        assert "'0 2 * * *' in UTC; a killed Beat is replaced within 150 s" in lines["beat"]

    def test_every_fault_is_named_with_its_remedy(
        self, scheduler: Scheduler, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", empty_database_url)
        outcome = scheduler("check")
        assert outcome.status == 2
        faults = outcome.faults
        assert len(faults) == 2
        assert "scheduler migrate" in faults[0]
        assert "USERS_RELATION" in faults[1]

    @pytest.mark.parametrize(
        ("info", "status", "said"),
        [
            ({"redis_version": "6.2.19"}, 2, "Redis 6.2.19 is too old"),
            ({"redis_version": "7.0.0"}, 0, "Redis 7.0.0 answers"),
            ({"redis_version": "10.0.1"}, 0, "Redis 10.0.1 answers"),
            ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, 0, "Valkey 9.1.2 answers"),
            ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, 0, "Valkey 7.2.5 answers"),
            ({"redis_version": "unstable"}, 0, "Redis unstable answers"),
        ],
    )
    def test_a_redis_that_lacks_commands(self, info: dict[str, str], status: int, said: str) -> None:
        found = redis_version("Redis", info)
        assert (found.status, found.text[: len(said)]) == (status, said)
        if status:
            assert "upgrade it to Redis 7.0 or newer, or use Valkey" in found.text

    def test_an_old_redis_is_a_fault(
        self, scheduler: Scheduler, ledger: Ledger, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also if another Redis is the broker: check asks both."""
        make_users(ledger.url, 1)
        monkeypatch.setenv("CELERY_BROKER_URL", redis_url)
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        monkeypatch.setattr(Redis, "info", lambda _: {"redis_version": "6.2.19"})
        outcome = scheduler("check")
        assert outcome.status == 2
        faults = outcome.faults
        assert [fault.split(": ")[0] for fault in faults] == ["FAULT Redis", "FAULT broker's Redis"]

    def test_an_eviction_policy_that_loses_messages(
        self, scheduler: Scheduler, ledger: Ledger, redis_url: str
    ) -> None:
        make_users(ledger.url, 1)
        with Redis.from_url(redis_url) as redis:
            redis.config_set("maxmemory-policy", "allkeys-lru")
            try:
                outcome = scheduler("check")
            finally:
                redis.config_set("maxmemory-policy", "noeviction")
        assert outcome.status == 2
        (fault,) = outcome.faults
        assert "allkeys-lru" in fault
        assert "CONFIG SET maxmemory-policy noeviction" in fault

    def test_the_eviction_policy_of_another_broker(
        self, scheduler: Scheduler, ledger: Ledger, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_users(ledger.url, 1)
        monkeypatch.setenv("CELERY_BROKER_URL", redis_url)
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        with Redis.from_url(redis_url) as redis:
            redis.config_set("maxmemory-policy", "allkeys-lru")
            try:
                outcome = scheduler("check")
            finally:
                redis.config_set("maxmemory-policy", "noeviction")
        faults = outcome.faults
        assert [fault.split(": ")[0] for fault in faults] == [
            "FAULT Redis",
            "FAULT broker's Redis eviction",
        ]
        assert "allkeys-lru" in faults[1]

    def test_a_postgres_that_takes_no_writes(
        self, read_only: ReadOnly, scheduler: Scheduler, ledger: Ledger
    ) -> None:
        make_users(ledger.url, 1)
        with read_only():
            outcome = scheduler("check")
        assert outcome.status == 4
        (fault,) = outcome.faults
        assert re.match(
            r"FAULT Postgres: PostgreSQL \d+ answers, but takes no writes: .*the primary", fault
        )

    def test_stores_that_are_away(self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/db")
        monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")
        outcome = scheduler("check")
        assert outcome.status == 4
        assert "secret" not in outcome.stdout + outcome.stderr
        for part in ("Postgres", "Redis", "broker"):
            assert re.search(rf"^FAULT {part}: .*unavailable", outcome.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", [["daily"], ["backfill", "--backfill-days=1"]])
def test_postgres_is_away(
    command: list[str], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/db")
    outcome = scheduler(*command, "--json")
    assert outcome.status == 4
    assert (outcome.report["outcome"], outcome.report["error"]) == ("failed", outcome.error)
    assert "Postgres at 127.0.0.1:1/db is unavailable" in outcome.error
    assert "secret" not in outcome.stdout + outcome.stderr
    assert broker.everything() == {}


@pytest.mark.parametrize("command", [["daily"], ["backfill", "--backfill-days=1"]])
def test_postgres_takes_no_writes(
    command: list[str], read_only: ReadOnly, scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 1)
    with read_only():
        outcome = scheduler(*command, "--json")
    assert outcome.status == 4
    assert (outcome.report["outcome"], outcome.report["error"]) == ("failed", outcome.error)
    assert re.search(r"Postgres at \S+ is unavailable: .*read-only transaction", outcome.error)
    assert (ledger.count(), broker.everything()) == (0, {})


@pytest.mark.parametrize("command", [["daily"], ["backfill", "--backfill-days=1"]])
def test_whatever_else_postgres_refuses_is_one_line(
    command: list[str], scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    ledger.execute(
        "CREATE TABLE people (id uuid, logins integer)",
        "INSERT INTO people VALUES (gen_random_uuid(), 0)",
        "CREATE VIEW users AS SELECT id, (1 / logins)::text AS github_login FROM people",
    )
    outcome = scheduler(*command, "--json")
    assert outcome.status == 4
    assert (outcome.report["outcome"], outcome.report["error"]) == ("failed", outcome.error)
    assert outcome.error == "Postgres refused a statement: division by zero"
    assert (ledger.count(), broker.everything()) == (0, {})


@pytest.mark.parametrize("command", ["status", "migrate"])
def test_postgres_is_away_for_other_commands(
    command: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/db")
    outcome = scheduler(command)
    assert (outcome.status, outcome.stdout) == (4, "")
    assert "Postgres at 127.0.0.1:1/db is unavailable" in outcome.error


def test_a_database_that_does_not_exist(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", ledger.url + "_not")
    outcome = scheduler("daily")
    assert outcome.status == 4
    assert "does not exist" in outcome.error


def test_redis_is_away(scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    make_users(ledger.url, 250)
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    outcome = scheduler("daily", "--date", DAY, "--json")
    assert outcome.status == 4
    report = outcome.report
    assert (report["outcome"], report["error"]) == ("failed", outcome.error)
    assert (report["jobs_inserted"], report["jobs_enqueued"]) == (250, 0)
    assert report["enqueue_failures"] == 250
    assert "the broker at 'redis://***@127.0.0.1:1/0' is unavailable" in outcome.error
    assert "250 jobs planned and 0 enqueued" in outcome.error
    assert "secret" not in outcome.stdout + outcome.stderr
    # A dry run also counts jobs that are written but not sent.
    rehearsed = scheduler("daily", "--date", DAY, "--dry-run", "--json").report
    assert (rehearsed["would_insert"], rehearsed["would_enqueue"]) == (0, 250)


@pytest.mark.parametrize("target", ["scheduler-daily", "scheduler-backfill"])
def test_make_has_the_same_commands(target: str, environment: dict[str, str], ledger: Ledger) -> None:
    make_users(ledger.url, 2)
    root = Path(__file__).resolve().parents[2]
    variable = f"{target.upper().replace('-', '_')}_ARGS"
    options = (
        f"--date {DAY}" if target == "scheduler-daily" else "--backfill-days 30 --github-logins user-1"
    )
    shown = subprocess.run(
        ["make", "--dry-run", "--assume-old=.venv/.installed", target, f"{variable}={options} --json"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (command,) = [line for line in shown.splitlines() if "scheduler " in line]
    assert command.endswith(f"bin/scheduler {target.removeprefix('scheduler-')} {options} --json")
