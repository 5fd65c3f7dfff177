"""Bad input: one clear line that names the option, the value and what is allowed; nothing written."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users, user_id

Scheduler = Callable[..., Outcome]

ONE = str(user_id(1))
UUIDS = "UUIDs, separated by commas"
LOGINS = "logins, separated by commas"
DAY = "a day as YYYY-MM-DD"
DAYS = "a whole number from 1 to 3650"
BATCH = "a whole number from 1 to 5000"
PAUSE = "a number of seconds from 0 to 3600"
KEY = "[A-Za-z0-9._:-]{1,200}, not beginning with daily:"
CAMPAIGN = "[A-Za-z0-9._-]{1,64}"

BAD_OPTIONS = [
    # tick, option, value, what the line shows of it, what is allowed
    *(("daily", "--date", value, value, DAY) for value in ("2026-02-30", "23.11.2026", "today", "")),
    ("daily", "--date", "2026-11-23\n", "'2026-11-23\\n'", DAY),
    ("daily", "--date", "20261123", "20261123", DAY),
    ("daily", "--date", "٢٠٢٦-11-23", "٢٠٢٦-11-23", DAY),
    *(("backfill", "--backfill-days", value, value, DAYS) for value in ("0", "-1", "3651", "1.5", "x", "")),
    ("backfill", "--backfill-days", "9" * 40, "9" * 40, DAYS),
    *(
        (tick, "--enqueue-batch-size", value, value, BATCH)
        for tick in ("daily", "backfill")
        for value in ("0", "5001", "-1", "many", "")
    ),
    *(
        (tick, "--enqueue-sleep-seconds", value, value, PAUSE)
        for tick in ("daily", "backfill")
        for value in ("-0.1", "nan", "inf", "-inf", "3601", "1s", "")
    ),
    *(("daily", "--max-enqueued-jobs", value, value, "a whole number from 1") for value in ("0", "x")),
    *(("backfill", "--backfill-max-users", value, value, "a whole number from 0") for value in ("-1", "x")),
    *(
        ("backfill", "--user-ids", value, "not a UUID", UUIDS)
        for value in ("octocat", "1", f"{ONE},x", f"{ONE};")
    ),
    *(
        ("backfill", "--user-ids", value, "has an empty item", UUIDS)
        for value in ("", ",", f"{ONE},", f",{ONE}", f"{ONE},,{ONE}", " ")
    ),
    *(("backfill", "--github-logins", value, "has an empty item", LOGINS) for value in ("", "a,,b", "a,")),
    (
        "backfill",
        "--github-logins",
        "oc\x1b[31mtocat",
        "'oc\\x1b[31mtocat', which is not a valid login",
        LOGINS,
    ),
    ("backfill", "--github-logins", "o" * 256, "which is not a valid login", LOGINS),
    *(
        ("backfill", "--partition-key", value, value, KEY)
        for value in ("", "daily:2026-11-23", "daily:", "a b", "a/b", "é", "a'; DROP TABLE sync_jobs; --")
    ),
    ("backfill", "--partition-key", "k" * 201, "k" * 77 + "...", KEY),
    ("backfill", "--partition-key", "key\n", "'key\\n'", KEY),
    *(("backfill", "--campaign", value, value, CAMPAIGN) for value in ("", "a:b", "a b", "é")),
    ("backfill", "--campaign", "c" * 65, "c" * 65, CAMPAIGN),
]


def nothing_written(ledger: Ledger, broker: Broker) -> bool:
    return not any(ledger.everything().values()) and broker.everything() == {}


def bad_input(scheduler: Scheduler, *arguments: str) -> str:
    """The lines on stderr, one per fault, when bad input ends a command; `--json` has the same."""
    outcome = scheduler(*arguments)
    assert outcome.status == 2, outcome
    assert outcome.stdout == ""
    as_json = scheduler(*arguments, "--json")
    assert as_json.status == 2
    assert as_json.stderr == outcome.stderr
    assert as_json.report["outcome"] == "refused"
    assert as_json.report["mode"] == arguments[0]
    said = "; ".join(outcome.errors)
    assert as_json.report["error"] == said
    return said


@pytest.fixture
def one_user(ledger: Ledger) -> None:
    make_users(ledger.url, 1)


@pytest.mark.usefixtures("one_user")
def test_bad_options(scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
    """One database for all cases, since none of them may write."""
    for tick, option, value, shown, allowed in BAD_OPTIONS:
        required = ["--backfill-days", "1"] if (tick, option) == ("backfill", option) else []
        arguments = required if option != "--backfill-days" else []
        line = bad_input(scheduler, tick, *arguments, f"{option}={value}")
        assert line.startswith(f"{option}="), line
        assert shown in line, line
        assert f"allowed is {allowed}" in line, line
        assert nothing_written(ledger, broker), line


@pytest.mark.usefixtures("one_user")
def test_good_values_at_the_bounds(scheduler: Scheduler) -> None:
    for tick in (
        ["daily", "--enqueue-batch-size=1", "--enqueue-sleep-seconds=0", "--date=0001-01-01"],
        [
            "daily",
            "--enqueue-batch-size=5000",
            "--enqueue-sleep-seconds=3600",
            f"--date={datetime.now(UTC).date()}",
        ],
        ["backfill", "--backfill-days=1", f"--campaign={'c' * 64}"],
        ["backfill", "--backfill-days=3650", f"--partition-key={'k' * 200}"],
        ["backfill", "--backfill-days=1", "--partition-key=daily"],
        ["backfill", "--backfill-days=1", f"--user-ids= {ONE} , {ONE}", "--github-logins= user-1 "],
    ):
        assert scheduler(*tick, "--dry-run").status == 0, tick


@pytest.mark.usefixtures("one_user")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backfill"], ["--backfill-days", "not set", DAYS]),
        (
            ["backfill", "--backfill-days=1", "--campaign=c", "--partition-key=k"],
            ["--campaign='c' cannot be combined with --partition-key"],
        ),
        (["backfill", "--backfill-days=0", "--campaign=a b"], ["--backfill-days='0'", "--campaign='a b'"]),
        (
            ["backfill", "--backfill-days=1", "--user-ids=@none.txt"],
            ["--user-ids='@none.txt'", "cannot be read"],
        ),
    ],
)
def test_bad_combinations(
    arguments: list[str], words: list[str], scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    line = bad_input(scheduler, *arguments)
    assert all(word in line for word in words), line
    assert nothing_written(ledger, broker)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["dayly"], "No such command 'dayly'. Did you mean 'daily'?"),
        (["xyzzy"], "No such command 'xyzzy'. (see"),
        (["daily", "--dat", "2026-11-23"], "No such option: --dat. Did you mean --date or --actor?"),
        (
            ["backfill", "--backfil-days", "1"],
            "Did you mean --backfill-days",
        ),
        (["daily", "--xyzzy"], "No such option: --xyzzy (see"),
        (["daily", "2026-11-23"], "2026-11-23"),
        (["daily", "--date"], "--date"),
        (["status", "a b"], "PARTITION_KEY='a b'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], word: str, scheduler: Scheduler) -> None:
    outcome = scheduler(*arguments)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert word in outcome.error


@pytest.mark.parametrize(
    "arguments",
    [
        *(["daily", "--bogus"], ["backfill", "--backfill-days"], ["daily", "2026-11-23"]),
        ["backfill", "--backfill-days=1", "--confirm=yes"],
    ],
)
def test_wrong_usage_of_a_tick_has_its_object_too(arguments: list[str], scheduler: Scheduler) -> None:
    usual = scheduler(*arguments)
    outcome = scheduler(arguments[0], "--json", *arguments[1:])
    assert (outcome.status, outcome.stderr) == (2, usual.stderr)
    assert (outcome.report["mode"], outcome.report["outcome"]) == (arguments[0], "refused")
    assert outcome.report["error"] == outcome.error


@pytest.mark.parametrize("command", [["daily"], ["backfill", "--backfill-days=1"]])
class TestTables:
    """DATABASE_URL leads to a database or tables that do not fit."""

    def ends_with(self, scheduler: Scheduler, command: list[str], *words: str) -> None:
        line = bad_input(scheduler, *command)
        assert all(word in line for word in words), line

    def test_no_users_relation(self, command: list[str], scheduler: Scheduler) -> None:
        self.ends_with(scheduler, command, "USERS_RELATION='users'", "no such table or view")

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ("id uuid", ["column github_login is missing", "must be text"]),
            ("github_login text", ["column id is missing", "must be uuid"]),
            ("id bigint, github_login text", ["column id is int8", "must be uuid"]),
            ("id uuid, github_login bytea", ["column github_login is bytea"]),
            ("name text", ["column id is missing", "column github_login is missing"]),
        ],
    )
    def test_users_without_its_columns(
        self, columns: str, words: list[str], command: list[str], scheduler: Scheduler, ledger: Ledger
    ) -> None:
        ledger.execute(f"CREATE TABLE users ({columns})")
        self.ends_with(scheduler, command, "USERS_RELATION='users'", *words)

    def test_another_relation_that_is_missing(
        self, command: list[str], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
    ) -> None:
        make_users(ledger.url, 1)
        monkeypatch.setenv("USERS_RELATION", "crm.people")
        self.ends_with(scheduler, command, "USERS_RELATION='crm.people'", "no such table or view")

    def test_tables_that_are_not_migrated(
        self,
        command: list[str],
        scheduler: Scheduler,
        empty_database_url: str,
        monkeypatch: pytest.MonkeyPatch,
        broker: Broker,
    ) -> None:
        make_users(empty_database_url, 1)
        monkeypatch.setenv("DATABASE_URL", empty_database_url)
        self.ends_with(scheduler, command, "`scheduler migrate`")
        assert Ledger(empty_database_url).value("SELECT to_regclass('sync_jobs')") is None
        assert broker.everything() == {}

    def test_tables_of_newer_code(self, command: list[str], scheduler: Scheduler, ledger: Ledger) -> None:
        make_users(ledger.url, 1)
        ledger.execute("UPDATE worker_scheduler_version SET version_num = '9999'")
        self.ends_with(scheduler, command, "version 9999", "deploy the newer code")

    def test_a_role_that_may_not(
        self, command: list[str], scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_users(ledger.url, 1)
        ledger.execute(
            "CREATE VIEW forbidden AS SELECT * FROM users", "REVOKE ALL ON sync_runs FROM PUBLIC"
        )
        role = f"guest_{ledger.value('SELECT current_database()')}"
        ledger.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'guest'",
            f"GRANT SELECT ON worker_scheduler_version TO {role}",
        )
        try:
            rest = ledger.url.partition("@")[2]
            monkeypatch.setenv("DATABASE_URL", f"postgresql://{role}:guest@{rest}")
            self.ends_with(scheduler, command, "Postgres refuses this role", "users")
        finally:
            ledger.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_file_of_ids_that_is_no_text(scheduler: Scheduler, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xff\xfe\x00")
    line = bad_input(scheduler, "backfill", "--backfill-days=1", f"--user-ids=@{tmp_path / 'ids'}")
    assert "--user-ids=" in line
    assert "cannot be read" in line
