"""Variables that do not parse: all faults at once, each named; no password is ever shown."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg import conninfo
from sqlalchemy.engine import make_url

from tests.support.command_line import Outcome, in_this_process, outcome_of
from tests.support.messages import Broker
from worker_scheduler.config.settings import Settings, load
from worker_scheduler.config.values import allowed
from worker_scheduler.errors import ConfigurationError

Scheduler = Callable[..., Outcome]

COMMANDS = [["daily"], ["backfill", "--backfill-days=1"], ["status"], ["migrate"], ["check"]]
SECRET = "s3cr3t"

BAD_POSTGRES_QUERIES = [
    *(
        "plugin=x",
        "plugin=x&plugin=y",
        "self=x",
        "cursor_factory=x",
        "row_factory=x",
        "context=x",
        "conninfo=x",
    ),
    *(
        "autocommit=1",
        "prepare_threshold=1",
        "kwargs=x",
        "replication=database",
        "bogus=1",
        "=x",
        "PLUGIN=x",
    ),
    *("client_encoding=SQL_ASCII", "client_encoding=latin1", "client_encoding=auto", "port=x", "port=0"),
    *("port=1&port=x", "port=99999", "host=a..b", "host=a&host=b..c", "hostaddr=h", "host=a:b:c&host=d"),
    *("sslmode=bogus", "sslmode=REQUIRE", "sslmode=require&sslmode=disable", "sslsni=2", "gssencmode=x"),
    *("target_session_attrs=bogus", "load_balance_hosts=x", "channel_binding=x", "keepalives=yes"),
    *("connect_timeout=soon", "connect_timeout=1.5", "tcp_user_timeout=x", "keepalives_idle=9999999999"),
    *("require_auth=x", "min_protocol_version=2", "ssl_min_protocol_version=SSLv3", "sslnegotiation=x"),
]
BAD_PLACES = [
    *(
        "host=a,b&port=1",
        "host=a,b&port=1,2,3",
        "host=a,b&hostaddr=127.0.0.1",
        "host=a,b&port=1,x",
        "host=a,b..c",
        "port=1,2",
    ),
    *("host=a%20b", "host=h/x", "host=[::1]:5", "hostaddr=1.2.3", "host=a:1&host=b:1&port=1"),
]

BAD_VARIABLES = [
    *(("MAX_ENQUEUED_JOBS", value) for value in ("0", "-1", "1e3", "many", str(2**63))),
    *(("BACKFILL_MAX_USERS", value) for value in ("-1", "x")),
    *(("BACKFILL_CONFIRM", value) for value in ("maybe", "2")),
    *(("ENQUEUE_BATCH_SIZE", value) for value in ("0", "5001", "1.5")),
    *(("ENQUEUE_SLEEP_SECONDS", value) for value in ("-1", "nan", "inf", "3601", "1s")),
    *(
        ("SCHEDULER_DAILY_LOCK_ID", value)
        for value in ("0", "-1", "0xg", str(2**63), "0x" + "f" * 16, "lock")
    ),
    *(("SCHEDULER_BACKFILL_LOCK_ID", value) for value in ("0", "0x7761766501", str(0x7761766501))),
    *(("SCHEDULER_LOCK_ENABLED", value) for value in ("perhaps", "7")),
    *(
        ("DAILY_TICK_CRON", value)
        for value in ("0 2 * *", "0 25 * * *", "@daily", "a b c d e", "0 2 * * * *")
    ),
    *(("SCHEDULER_TIMEZONE", value) for value in ("Mars/Olympus", "../etc/passwd", "UTC+1")),
    *(
        ("SYNC_HANDLER", value)
        for value in ("package.module", "package:module:function", ":f", "m:", "m f")
    ),
    *(("USERS_RELATION", value) for value in ("a.b.c", "users; DROP TABLE users", 'a"b', "1users")),
    *(("LOG_LEVEL", value) for value in ("LOUD", "10")),
    *(("PUBLISHER", value) for value in ("pigeon", "redis")),
    *(("DAILY_CATCH_UP", value) for value in ("some", "1")),
    *(("DAILY_CATCH_UP_WINDOW", value) for value in ("-1", "367", "1w", "1.5")),
    *(("RECONCILE_INTERVAL_SECONDS", value) for value in ("0", "3601", "1.5")),
    *(("LEASE_SECONDS", value) for value in ("0", "61", "nan")),
    *(("MESSAGE_GRACE_SECONDS", value) for value in ("-1", "3601", "inf")),
    *(("MAX_QUEUE_DEPTH", value) for value in ("0", "-1", "none")),
    *(("DISPATCH_CONCURRENCY", value) for value in ("0", "65", "many")),
    *(("VISIBILITY_TIMEOUT_SECONDS", value) for value in ("1", "86401", "x")),
    *(("SYNC_MAX_ATTEMPTS", value) for value in ("0", "1001", "x")),
    *(("REDIS_KEY_PREFIX", value) for value in ("a b", "p" * 65, "é")),
    *(
        ("DATABASE_URL", value)
        for value in (
            *("localhost", "mysql://h/db", "sqlite:///file", "postgresql://", "postgresql://h:port/db"),
            *(
                "postgresql://h:0/db",
                "postgresql://h:99999/db",
                "postgresql://h",
                "postgresql+asyncpg://h/db",
            ),
            *("postgresql://a b/db", "postgresql://u:%00@h/db", "postgresql://h/db?options=%00"),
            *(f"postgresql://h/db?{query}" for query in BAD_POSTGRES_QUERIES),
            *(f"postgresql:///db?{query}" for query in BAD_PLACES),
            *(
                "postgresql://h:+5/db",
                "postgresql://h: 5/db",
                "postgresql://h:5_4/db",
                "postgresql://h:٣/db",
            ),
            *("postgresql://u@a..b/d", f"postgresql://{'x' * 64}.org/d", "postgresql://u:%ff@h/db"),
            *(
                "postgresql://h%2f/db",
                "postgresql://[::1/db",
                "postgresql://h1:1,h2:2/db",
                "postgresql://h/",
            ),
        )
    ),
    *(
        ("REDIS_URL", value)
        for value in (
            *(
                "localhost:6379",
                "http://h",
                "redis://",
                "redis://h:port/0",
                "redis://h:0/0",
                "redis://h/name",
            ),
            *(
                "redis://a..b/0",
                f"redis://{'x' * 64}/0",
                "redis://:%ff@h/0",
                "redis://:a\nb@h/0",
                "redis://a%2Fb",
            ),
            *("redis://h/99999999999", "redis://h?socket_timeout=x", "rediss://h?ssl_ca_certs=%00"),
            *("rediss://h?ssl_check_hostname=perhaps", "redis://a,b/0", "redis://h?ssl_cert_reqs=none"),
            *("rediss://h?ssl_cert_reqs=maybe", "sentinel://h", "redis://h/0#fragment", "redis://[::1/0"),
        )
    ),
    *(
        ("CELERY_BROKER_URL", value)
        for value in (
            *(
                "nothing",
                "carrier-pigeon://h",
                "redis://h/name",
                "amqp://h:port//",
                "amqp://h//;amqp://h:x//",
            ),
            *("amqp://h?anything=1", "amqp://h?frame_max=0", "amqp://h//;amqp://h2//?x=1", "amqp://a..b//"),
            *("amqp://h?heartbeat=nan", "amqp://h?login_method=x", "amqp://h?ssl=1", "amqp://h:0//"),
            *(
                "amqp://h?connect_timeout=5",
                "amqp://u:%ff@h//",
                "amqp+x://h",
                "redis+x://h",
                "amqps://h?ssl_x=1",
            ),
            *("redis+socket:///s?x=1", "redis+socket:///s?virtual_host=x", "amqp://h//;redis://a..b"),
            *("redis+socket://#?plugin=a..b", "amqp://h//#?x=1", "sentinel://h#x", "amqp://h//;amqp://#g"),
            *("amqp://[::1//", "sqs://", "kafka://h:9092", "mongodb://h/db", "zookeeper://h", "qpid://h"),
        )
    ),
]


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize(("name", "value"), BAD_VARIABLES)
def test_bad_variables(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    outcome = in_this_process("daily")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.error.startswith(f"{name}="), outcome.error
    assert outcome.error.endswith(f"allowed is {allowed(Settings.model_fields[name.lower()])}"), (
        outcome.error
    )
    if not name.endswith("_URL"):
        assert f"{name}='{value[:77]}" in outcome.error


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("MAX_ENQUEUED_JOBS", " 5 ", 5),
        ("BACKFILL_MAX_USERS", "0", 0),
        ("BACKFILL_CONFIRM", "1", True),
        ("BACKFILL_CONFIRM", "false", False),
        ("ENQUEUE_SLEEP_SECONDS", "0", 0.0),
        ("SCHEDULER_DAILY_LOCK_ID", "0x7FFFFFFFFFFFFFFF", 2**63 - 1),
        ("SCHEDULER_LOCK_ENABLED", "0", False),
        ("DAILY_TICK_CRON", " */5  * * * * ", "*/5 * * * *"),
        ("SCHEDULER_TIMEZONE", "America/New_York", "America/New_York"),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("USERS_RELATION", 'crm."Odd Name"', 'crm."Odd Name"'),
        ("SYNC_HANDLER", "app.sync:handle", "app.sync:handle"),
    ],
)
def test_good_variables(name: str, value: str, meant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(load(), name.lower()) == meant


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize(
    "url",
    [
        *("amqp://h", "amqps://u:p%2F%40@h:5671/v%2Fhost", "pyamqp://a//;pyamqp://b//", "memory://"),
        *("sqla+postgresql://u:p@h/db", "sentinel://a:26379;sentinel://b:26379", "filesystem://"),
    ],
)
def test_good_brokers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    assert load().broker_url == url


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize("option", ["sslmode", "target_session_attrs", "bogus"])
def test_an_option_that_the_driver_does_not_know(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://127.0.0.1:1/db?{option}=bogus")
    outcome = in_this_process("daily", "--json")
    assert (outcome.status, outcome.report["outcome"]) == (2, "refused")
    assert outcome.error.startswith("DATABASE_URL=")
    assert option in outcome.error


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize(
    "query",
    [
        *(
            "host=a,b&port=1,2",
            "host=a&host=b",
            "host=a:1&host=b:2",
            "host=h&hostaddr=::1",
        ),
        *(
            "host=/var/run/postgresql",
            "host=%40abstract",
            "host=/a,/b",
            "service=app",
            "passfile=/p",
            "user=u",
        ),
        *("client_encoding=utf8", "client_encoding=UTF-8", "sslmode=verify-full&sslrootcert=/ca", "port="),
        *("options=-c%20search_path%3Dapp", "application_name=x%0Ay", "require_auth=!password,!none"),
        *("target_session_attrs=read-write&load_balance_hosts=random", "connect_timeout=3&keepalives=1"),
    ],
)
def test_parameters_of_libpq_are_kept(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f" postgres:///db?{query}\n")
    url = make_url(load().database_url.get_secret_value())
    _, given = make_url("postgresql+psycopg://").get_dialect()().create_connect_args(url)
    assert given["dbname"] == "db"
    # libpq parses it, though nothing of it exists.
    conninfo.make_conninfo("", **given)


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("PGPORT", "x", "postgresql://h/db"),
        ("PGHOST", "a..b", "postgresql:///db"),
        ("PGHOSTADDR", "no-address", "postgresql://h/db"),
        ("PGSSLMODE", "REQUIRE", "postgresql://h/db"),
        ("PGTARGETSESSIONATTRS", "x", "postgresql://h/db"),
        ("PGCONNECT_TIMEOUT", "soon", "postgresql://h/db"),
    ],
)
def test_a_variable_of_libpq_is_checked_where_the_url_leaves_it_to_it(
    variable: str, value: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("DATABASE_URL", url)
    outcome = in_this_process("daily")
    assert outcome.status == 2
    assert outcome.error.startswith("DATABASE_URL=")
    assert value not in outcome.error.partition("allowed is")[0]
    place = "host=127.0.0.1&hostaddr=127.0.0.1&port=1"
    rest = "sslmode=disable&target_session_attrs=any&connect_timeout=1"
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///db?{place}&{rest}")
    assert in_this_process("daily").status == 4


@pytest.mark.usefixtures("urls")
@pytest.mark.parametrize("name", [name.upper() for name in Settings.model_fields])
def test_a_variable_that_is_no_utf_8_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (b"\xff", b"redis://:p\xff@h/0", b"postgresql://h/d\xff", b'"\xff"', b"1\xff", b"UTC\xc3"):
        monkeypatch.setenv(name, os.fsdecode(value))
        outcome = in_this_process("daily")
        assert outcome.status == 2
        assert outcome.error.startswith(f"{name}=")
        assert outcome.error.isprintable()


WITHOUT_PRIVILEGES = """
import encodings.idna, os, sys
import worker_scheduler.cli  # as root, who may read this Python
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
sys.exit(worker_scheduler.cli.run(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without an account")
@pytest.mark.parametrize("home", [None, "/root", "/nonexistent", "/etc/passwd", ""])
def test_a_home_folder_that_is_missing_or_cannot_be_read_is_no_error(home: str | None) -> None:
    """A remote host, whose certificate is verified: libpq looks for a CA in the home folder."""
    given = {
        "DATABASE_URL": "postgresql://u@db.invalid/d",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "PATH": "/bin",
    }
    if home is not None:
        given["HOME"] = home
    outcome = outcome_of([sys.executable, "-c", WITHOUT_PRIVILEGES, "status"], given, Path("/"))
    assert outcome.status == 4
    assert "failed to resolve host" in outcome.error


@pytest.mark.usefixtures("urls")
def test_a_library_that_a_broker_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "sqs://")
    assert "needs a library that is not installed (No module named 'botocore'): install kombu[sqs]" in (
        in_this_process("daily").error
    )


@pytest.mark.usefixtures("urls")
def test_the_documented_defaults() -> None:
    settings = load()
    assert settings.users_relation == "users"
    assert settings.max_enqueued_jobs == 10_000
    assert settings.backfill_max_users == 50
    assert not settings.backfill_confirm
    assert settings.enqueue_batch_size == 200
    assert settings.enqueue_sleep_seconds == 0.2
    assert settings.scheduler_daily_lock_id == 0x7761766501
    assert settings.scheduler_backfill_lock_id == 0x7761766502
    assert settings.scheduler_lock_enabled
    assert settings.daily_tick_cron == "0 2 * * *"
    assert settings.scheduler_timezone == "UTC"
    assert settings.log_level == "INFO"
    assert settings.sync_handler is None
    assert settings.broker_url == settings.redis_url.get_secret_value()


@pytest.mark.usefixtures("urls")
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load()
    for name, field in Settings.model_fields.items():
        if not field.is_required():
            monkeypatch.setenv(name.upper(), "")
    assert load() == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_unset_urls_are_named_all_at_once(command: list[str]) -> None:
    outcome = in_this_process(*command)
    assert outcome.status == 2
    lines = outcome.stdout if command == ["check"] else outcome.stderr
    assert "DATABASE_URL is not set: give postgresql://" in lines
    assert "REDIS_URL is not set: give redis://" in lines


def test_all_faults_at_once_each_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "DATABASE_URL": "mysql://h/db",
        "REDIS_URL": "http://h",
        "MAX_ENQUEUED_JOBS": "x",
        "DAILY_TICK_CRON": "never",
        "LOG_LEVEL": "LOUD",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert [fault.partition("=")[0] for fault in caught.value.faults] == list(given)
    outcome = in_this_process("daily", "--json")
    assert outcome.status == 2
    assert [line.partition("=")[0] for line in outcome.errors] == list(given)
    assert outcome.report["error"] == "; ".join(outcome.errors)
    checked = in_this_process("check")
    assert (checked.status, len(checked.stdout.splitlines())) == (2, len(given))


@pytest.mark.parametrize(
    "url",
    [
        f"postgres://user:{SECRET}@127.0.0.1:1/db",
        f"postgresql://user:a/{SECRET}@h/db",
        f"postgresql://user:a@{SECRET}@h:port/db",
        f"mysql://user:{SECRET}@h/db",
        f"postgresql:/user:{SECRET}@h/db",
        f"user:{SECRET}@h/db",
        f"postgresql://h:1/db?password={SECRET}",
        f"postgresql://user:{SECRET}@/",
        f"://{SECRET}",
        f"postgresql://u:p@{SECRET}@127.0.0.1:1/db",
        f"postgresql://u:p@/{SECRET}@127.0.0.1:1/db",
        f"postgresql://u:p@{SECRET}?x@127.0.0.1:1/db",
        f"pyamqp://u:{SECRET}@127.0.0.1:abc//",
        f"amqp://u:{SECRET}/@127.0.0.1:1//",
        f"amqp://u:12/{SECRET}@127.0.0.1:1//",
        f"amqp://h//;amqp://u:{SECRET}/@127.0.0.1:1//",
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"])
def test_passwords_are_never_shown(
    name: str, url: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv(name, url)
    for command in COMMANDS:
        outcome = scheduler(*command)
        assert SECRET not in outcome.stdout + outcome.stderr
        if command in COMMANDS[:2] and name == "DATABASE_URL":
            assert outcome.status in {2, 4}
            assert len(outcome.errors) == 1
    assert broker.everything() == {}


def test_passwords_are_masked_in_what_the_settings_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user:{SECRET}@h/db")
    monkeypatch.setenv("REDIS_URL", f"redis://:{SECRET}@h/0")
    monkeypatch.setenv("CELERY_BROKER_URL", f"amqp://user:{SECRET}@h//")
    settings = load()
    assert SECRET not in repr(settings) + str(settings)
