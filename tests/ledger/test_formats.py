"""What the server, a database, a role or PG* variables set changes no result and stops nothing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg._encodings import py_codecs
from psycopg.sql import SQL, Identifier
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.support.application import fresh_app
from tests.support.command_line import Outcome, in_this_process
from tests.support.databases import new_database, url_of
from tests.support.ledger import Ledger
from tests.support.older_scheduler import OlderScheduler
from tests.support.users import make_users, user_id
from worker_scheduler import embedded, wiring
from worker_scheduler.clock import utc_now
from worker_scheduler.config.settings import load
from worker_scheduler.ledger import requests
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.worker.types import RetryLater, SkipJob, SyncJob

Scheduler = Callable[..., Outcome]
Make = Callable[..., Ledger]

SMILE = "\N{GRINNING FACE}"
KEY = "daily:2026-11-24"
READABLE = "client_encoding=utf8&options=-csearch_path%3Dpublic%20-cdatestyle%3DISO"
"""What the tests' own connections set against the settings under test."""
DUMP = Path(__file__).with_name("version_0003.sql")


@pytest.fixture
def make(
    servers: embedded.Servers, redis_url: str, redis_key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Makes the test's database, of any encoding, and configures this process for it."""
    with ExitStack() as stack:

        def made(encoding: str = "UTF8") -> Ledger:
            name = stack.enter_context(new_database(servers.database_url, "template0", encoding))
            url = url_of(servers.database_url, name)
            for variable, value in {
                "DATABASE_URL": url,
                "REDIS_URL": redis_url,
                "REDIS_KEY_PREFIX": redis_key_prefix,
                "ENQUEUE_SLEEP_SECONDS": "0",
                "LOG_LEVEL": "CRITICAL",
            }.items():
                monkeypatch.setenv(variable, value)
            return Ledger(f"{url}?{READABLE}")

        stack.enter_context(fresh_app())
        yield made


def run(*arguments: str) -> Outcome:
    with fresh_app():
        return in_this_process(*arguments)


def set_for_database(ledger: Ledger, **settings: str) -> None:
    name = make_url(ledger.url).database
    assert name is not None
    with psycopg.connect(ledger.url, autocommit=True) as connection:
        for setting, value in settings.items():
            connection.execute(
                SQL("ALTER DATABASE {} SET {} = ").format(Identifier(name), Identifier(setting))
                + SQL(value)
            )


def do_all(ledger: Ledger, key: str, handler: Callable[[SyncJob], object]) -> None:
    for row in ledger.rows("SELECT job_id FROM sync_jobs WHERE partition_key = %s", key):
        wiring.process_worker().run(row["job_id"], handler)


def walk_through(ledger: Ledger, handler: Callable[[SyncJob], object]) -> dict[UUID, bytes]:
    """Every command, and every way in which a job ends; returns the reasons of the first attempts."""
    migrated = run("migrate")
    assert migrated.status == 0, migrated
    assert run("check").faults == []
    daily = run("daily", "--date", "2026-11-24", "--json")
    assert (daily.status, daily.report["jobs_enqueued"]) == (0, 4), daily
    do_all(ledger, KEY, handler)
    assert ledger.states(KEY) == {"COMPLETED": 1, "SKIPPED": 1, "FAILED": 1, "PENDING": 1}
    reasons = ledger.rows(
        "SELECT user_id, convert_to(error_message, getdatabaseencoding()) AS reason FROM sync_jobs"
    )
    ledger.execute("UPDATE sync_jobs SET not_before = now() WHERE status = 'PENDING'")
    reconciled = run("reconcile", "--json")
    assert (reconciled.status, reconciled.report["due_jobs"]) == (0, 1), reconciled
    do_all(ledger, KEY, lambda _: None)
    assert run("reconcile").status == 0
    status = run("status", KEY, "--json")
    assert (status.status, status.report["state"]) == (0, "FINISHED"), status
    assert KEY in run("status").stdout
    ledger.execute("UPDATE sync_runs SET finished_at = now() - interval '3 days'")
    pruned = run("prune", "--older-than", "1d", "--json")
    assert pruned.status == 0, pruned
    return {row["user_id"]: row["reason"] for row in reasons if row["reason"] is not None}


def end_in_every_way(job: SyncJob) -> None:
    """One job each is completed, skipped, failed and put off; the texts are in no small encoding."""
    if job.user_id == user_id(2):
        raise SkipJob(f"nothing for müller {SMILE}")
    if job.user_id == user_id(3):
        raise ValueError(f"müller {SMILE}\0\udcff")
    if job.user_id == user_id(4):
        raise RetryLater(f"later {SMILE}")


SETTINGS: tuple[dict[str, str], ...] = (
    {"datestyle": "'SQL, DMY'", "timezone": "'Asia/Kathmandu'", "intervalstyle": "'sql_standard'"},
    {"datestyle": "'German'", "timezone": "'America/St_Johns'", "bytea_output": "'escape'"},
    {"datestyle": "'Postgres, MDY'", "client_encoding": "'LATIN1'", "standard_conforming_strings": "off"},
    {"client_encoding": "'SQL_ASCII'", "extra_float_digits": "-15", "row_security": "off"},
    {"client_encoding": "'SJIS'", "default_transaction_isolation": "'serializable'"},
    {"default_transaction_isolation": "'repeatable read'", "plan_cache_mode": "'force_generic_plan'"},
    {"idle_session_timeout": "'50ms'", "quote_all_identifiers": "on", "xmloption": "'document'"},
)


@pytest.mark.parametrize("settings", SETTINGS, ids="-".join)
def test_no_setting_of_the_database_changes_a_result(settings: dict[str, str], make: Make) -> None:
    ledger = make()
    make_users(ledger.url, 4)
    set_for_database(ledger, **settings)
    walk_through(ledger, end_in_every_way)


@pytest.mark.parametrize(
    "variables",
    [
        {"PGDATESTYLE": "SQL, DMY", "PGTZ": "Asia/Kathmandu", "PGCLIENTENCODING": "LATIN1"},
        {
            "PGCLIENTENCODING": "SQL_ASCII",
            "PGOPTIONS": "-c datestyle=German -c search_path=nowhere -c standard_conforming_strings=off",
        },
    ],
    ids="-".join,
)
def test_no_variable_of_libpq_changes_a_result(
    variables: dict[str, str], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make()
    make_users(ledger.url, 4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    walk_through(ledger, end_in_every_way)


@pytest.mark.parametrize(
    ("encoding", "failed", "put_off"),
    [
        ("UTF8", f"ValueError: müller {SMILE}\\x00\\udcff", f"later {SMILE}"),
        ("LATIN1", "ValueError: müller \\U0001f600\\x00\\udcff", "later \\U0001f600"),
        ("SQL_ASCII", f"ValueError: müller {SMILE}\\x00\\udcff", f"later {SMILE}"),
        ("WIN1251", "ValueError: m\\xfcller \\U0001f600\\x00\\udcff", "later \\U0001f600"),
        ("EUC_JP", "ValueError: müller \\U0001f600\\x00\\udcff", "later \\U0001f600"),
        ("EUC_TW", "ValueError: m\\xfcller \\U0001f600\\x00\\udcff", "later \\U0001f600"),
    ],
)
def test_a_reason_outside_the_encoding_is_stored_escaped_and_the_job_runs_once(
    encoding: str, failed: str, put_off: str, make: Make
) -> None:
    ledger = make(encoding)
    make_users(ledger.url, 4)
    ran: list[UUID] = []

    def handler(job: SyncJob) -> None:
        ran.append(job.user_id)
        end_in_every_way(job)

    reasons = walk_through(ledger, handler)
    assert sorted(ran) == sorted(user_id(number) for number in range(1, 5))
    codec = py_codecs.get(encoding.replace("_", "").encode(), "ascii").replace("ascii", "utf-8")
    stored = {user: reason.decode(codec) for user, reason in reasons.items()}
    assert stored[user_id(2)] == failed.replace("ValueError:", "nothing for").removesuffix("\\x00\\udcff")
    assert stored[user_id(3)] == failed
    assert stored[user_id(4)] == put_off


def test_an_escaped_reason_is_cut_like_any_other(make: Make) -> None:
    ledger = make("LATIN1")
    make_users(ledger.url, 1)
    run("migrate")
    run("daily", "--date", "2026-11-24")

    def handler(_: SyncJob) -> None:
        raise SkipJob(SMILE * 500)

    do_all(ledger, KEY, handler)
    assert ledger.value("SELECT length(error_message) FROM sync_jobs") == 500


@pytest.mark.parametrize("encoding", ["EUC_JP", "EUC_KR", "WIN1252", "WIN874"])
def test_where_python_and_postgres_disagree_about_a_character_the_reason_is_kept(
    encoding: str, make: Make
) -> None:
    reasons = dict(zip(map(user_id, range(1, 6)), "\u00a5\u203e\u301c\u00f7\x81", strict=True))
    ledger = make(encoding)
    make_users(ledger.url, 5)
    run("migrate")
    run("daily", "--date", "2026-11-24")

    def handler(job: SyncJob) -> None:
        raise SkipJob(f"reason {reasons[job.user_id]}")

    do_all(ledger, KEY, handler)
    assert ledger.states(KEY) == {"SKIPPED": 5}
    assert ledger.value("SELECT bool_and(error_message LIKE 'reason _%') FROM sync_jobs")


@pytest.mark.parametrize(
    ("encoding", "stored", "seen"),
    [
        ("SQL_ASCII", b"m\xfcller", "m\\xfcller"),
        ("SQL_ASCII", "müller".encode(), "müller"),
        ("LATIN1", b"m\xfcller", "müller"),
        ("WIN1252", b"m\x81ller", "m\\x81ller"),  # a byte without a meaning there
    ],
)
def test_a_login_that_cannot_be_decoded_stops_neither_a_tick_nor_a_claim(
    encoding: str, stored: bytes, seen: str, make: Make
) -> None:
    ledger = make(encoding)
    make_users(ledger.url, 4)
    with psycopg.connect(ledger.url, client_encoding=encoding) as connection:
        connection.execute(b"UPDATE users SET github_login = '" + stored + b"' WHERE id = %s", [user_id(1)])
    seen_logins: dict[UUID, str | None] = {}

    def handler(job: SyncJob) -> None:
        seen_logins[job.user_id] = job.github_login
        end_in_every_way(job)

    walk_through(ledger, handler)
    assert seen_logins[user_id(1)] == seen


def test_an_odd_column_of_the_users_stops_no_tick(make: Make) -> None:
    ledger = make("SQL_ASCII")
    make_users(ledger.url, 4)
    with psycopg.connect(ledger.url, client_encoding="SQL_ASCII") as connection:
        connection.execute(b'ALTER TABLE users ADD "m\xfcller" integer')
    walk_through(ledger, end_in_every_way)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_login_that_the_encoding_lacks_belongs_to_no_user(encoding: str, make: Make) -> None:
    ledger = make(encoding)
    make_users(ledger.url, 1)
    run("migrate")
    outcome = run("backfill", "--backfill-days", "7", "--github-logins", f"{SMILE},user-1")
    assert outcome.status == 3
    assert f"1 unknown user: {SMILE}" in outcome.error


def test_a_state_of_an_older_scheduler_in_any_bytes_is_counted(make: Make) -> None:
    ledger = make("SQL_ASCII")
    OlderScheduler("text", status="text", text="text").leave_behind(ledger.url, 1)
    ledger.execute("UPDATE sync_jobs SET status = convert_from('\\x6dfc', 'SQL_ASCII')")
    run("migrate")
    outcome = run("status", "daily:2026-11-23", "--json")
    assert (outcome.status, outcome.report["jobs"]["m\\xfc"]) == (0, 2), outcome


@pytest.mark.parametrize("datestyle", ["'SQL, DMY'", "'German'"])
def test_an_earlier_ledger_is_upgraded_in_any_style(datestyle: str, make: Make) -> None:
    ledger = make("LATIN1")
    ledger.execute(DUMP.read_text())
    set_for_database(ledger, datestyle=datestyle, timezone="'Asia/Kathmandu'", intervalstyle="'iso_8601'")
    assert run("migrate").status == 0
    assert run("status").status == 0


def test_times_are_read_and_written_to_the_microsecond(make: Make) -> None:
    ledger = make()
    set_for_database(ledger, datestyle="'SQL, DMY'", timezone="'America/St_Johns'")
    database = wiring.open_database(load(), size=1)
    written = text("SELECT :given, extract(epoch FROM CAST(:given AS timestamptz))")
    with database.autocommit() as connection:
        for year in (1, 1969, 2026, 9999):
            given = datetime(year, 3, 4, 5, 6, 7, 8, tzinfo=UTC)
            read, epoch = connection.execute(written, {"given": given}).one()
            assert read == given
            assert float(epoch) == pytest.approx(given.timestamp(), abs=1e-6)
    database.dispose()


@pytest.mark.parametrize(
    "encoding", ["UTF8", "LATIN1", "SQL_ASCII", "EUC_JP", "EUC_KR", "WIN1252", "WIN874"]
)
def test_no_encoding_refuses_a_request_for_its_words(encoding: str, make: Make) -> None:
    """Python takes some of these characters for ones of the encoding, and Postgres does not."""
    make(encoding)
    run("migrate")
    database = wiring.open_database(load(), size=1)
    every = "".join(map(chr, [*range(0xA0, 0x0600), *range(0x3000, 0x3100), 0x20AC, 0x1F600]))
    for first in range(0, len(every), 150):
        said = every[first : first + 150]
        asked = Asked("daily", None, actor=said, source=said, reason=said, options={"campaign": said})
        with database.transaction() as connection:
            requests.record(connection, asked, "opened", now=utc_now(), detail=said)
    database.dispose()
