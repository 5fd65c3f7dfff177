"""Odd inputs for every option, variable and task argument: each gets an answer or a documented error.

Every tick here is a dry run, so that an accepted input writes nothing. `make test-fuzz` tries 20,000
inputs, `make test` 1,000; of URLs 5,000 of each kind, and 250; of messages in queues 5,000, and 250.
"""

import json
import os
import string
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from psycopg import conninfo
from redis import Redis
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from tests.intake.malformed import good
from tests.support.command_line import Outcome
from tests.support.hypotheses import inputs
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import Process, started, worker_of
from tests.support.users import make_users, user_id
from tests.support.waiting import wait_until
from worker_scheduler.config.options import BackfillOptions, DailyOptions, parse_backfill, parse_daily
from worker_scheduler.config.settings import Settings, load
from worker_scheduler.errors import BadInput, ConfigurationError, SchedulerError
from worker_scheduler.ledger.database import Database
from worker_scheduler.publisher.broker import redis_client

pytestmark = pytest.mark.timeout(600)  # 20,000 inputs take their time
Scheduler = Callable[..., Outcome]

# Almost valid text finds more faults than random text.
LIKELY = [
    *("", " ", ",", "0", "1", "-1", "00", "1e3", "1_000", "0x10", "nan", "inf", "9" * 400, "true", "1.0"),
    *("2026-11-23", "2026-02-30", "daily:2026-11-23", "backfill", "a.b:c", "*/5 * * * *", "60 * * * *"),
    *(str(user_id(1)), f"{user_id(1)},", "user-1", "USER-1,user-2", "@", "@/", "@/dev/null", "--", "-x"),
    *(
        "postgresql://u:secret@h:1/d",
        "postgres://",
        "redis://:secret@h:1/0",
        "rediss://[::1",
        "Europe/London",
    ),
    *(
        "../etc/passwd",
        "%s",
        "%(x)s",
        "{}",
        "'; DROP TABLE sync_jobs; --",
        "\x1b[2J",
        "\r\n",
        "\u202e",
        "\0",
    ),
    *("\ud800", "٣", "İ", "\u2028"),
]
texts = st.one_of(
    st.sampled_from(LIKELY),
    st.text(max_size=40),
    st.text(string.printable, max_size=40),
    st.lists(st.sampled_from(LIKELY), max_size=3).map(",".join),
)
numbers = st.one_of(st.integers(), st.floats(), st.integers(-2, 6_000))
values_of_json = st.recursive(
    st.one_of(texts, numbers, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=5,
)


def is_one_clear_line(text: str) -> bool:
    """Whether the text is not empty, and has no character that ends a line or controls a terminal."""
    return bool(text) and not any(
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in "\u202e\u2066"
        for character in text
    )


def options_of(model: type[BackfillOptions] | type[DailyOptions]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*sorted(model.model_fields), "date", "x"]), values_of_json)


@inputs(0.45)
@given(options_of(BackfillOptions))
def test_options(options: dict[str, Any]) -> None:
    for parse, model in ((parse_backfill, BackfillOptions), (parse_daily, DailyOptions)):
        try:
            assert isinstance(parse(options), model)
        except BadInput as error:
            assert is_one_clear_line(str(error)), error


# The operating system allows neither NUL nor lone surrogates in an environment variable.
variable = texts.map(lambda text: text.replace("\0", "").encode(errors="ignore").decode())


@inputs(0.3)
@given(st.dictionaries(st.sampled_from(sorted(name.upper() for name in Settings.model_fields)), variable))
def test_variables(environment: dict[str, str]) -> None:
    complete = {"DATABASE_URL": "postgresql://u:secret@h:1/d", "REDIS_URL": "redis://h:1/0"} | environment
    with patch.dict(os.environ, complete):
        try:
            shown = repr(load())
        except ConfigurationError as error:
            assert all(is_one_clear_line(fault) for fault in error.faults), error
            shown = str(error)
    assert "secret" not in shown


# Pieces of URLs: what is right, what a driver takes for something else, and what it fails at.
piece = st.one_of(
    st.sampled_from(
        [
            *(
                "h",
                "a..b",
                "a,b",
                "[::1]",
                "[::1",
                "[fe80::1%25eth0]",
                "127.0.0.1",
                "x" * 64,
                "é",
                "%2Ftmp",
                "@",
            ),
            *(
                "",
                " ",
                "/",
                "//",
                ":",
                "?",
                "#",
                "&",
                "=",
                ";",
                "%00",
                "%ff",
                "%",
                "\t",
                "\n",
                "\\",
                "+",
                "0",
                "1",
            ),
            *(
                "5432",
                "99999",
                "-1",
                "x",
                "d",
                "db name",
                "u:secret",
                "u:p%40secret",
                "u@v:secret",
                "?x",
                "\ufeff",
            ),
        ]
    ),
    texts,
)
parameter = st.tuples(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "plugin",
                    "self",
                    "cursor_factory",
                    "client_encoding",
                    "host",
                    "port",
                    "hostaddr",
                    "sslmode",
                ),
                *(
                    "service",
                    "options",
                    "password",
                    "connect_timeout",
                    "target_session_attrs",
                    "application_name",
                ),
                *(
                    "heartbeat",
                    "frame_max",
                    "ssl",
                    "ssl_cert_reqs",
                    "ssl_ca_certs",
                    "virtual_host",
                    "login_method",
                ),
                *(
                    "connect_timeout",
                    "transport",
                    "hostname",
                    "credential_provider",
                    "dbname",
                    "user",
                    "kwargs",
                ),
            ]
        ),
        texts,
    ),
    piece,
).map("=".join)


def urls_of(*schemes: str) -> st.SearchStrategy[str]:
    """Texts that are nearly URLs of these schemes, sometimes with a password."""
    place = st.tuples(
        *(st.sampled_from(["", "u:secret@", ":secret@", "u@", "%ff:secret@"]), piece),
        *(
            st.sampled_from(["", ":1", ":0", ":x", ":99999", ":"]),
            st.sampled_from(["", "/", "/0", "/d", "//"]),
        ),
    ).map("".join)
    query = st.lists(parameter, max_size=3).map(lambda given: "?" + "&".join(given) if given else "")
    url = st.tuples(st.sampled_from(schemes), st.just("://"), st.one_of(place, piece), query).map("".join)
    return st.one_of(
        url, st.lists(url, max_size=3).map(";".join), st.tuples(piece, url, piece).map("".join)
    )


def as_variable(text: str) -> str:
    """`text` as a variable of the environment would have it, where bytes that are no UTF-8 are allowed."""
    return os.fsdecode(
        text.replace("\0", "").encode("utf-8", "surrogateescape" if "\udcff" in text else "ignore")
    )


def shown_or_refused(name: str, url: str) -> str | None:
    """The URL as it was normalised; None if it was refused, in clear lines without the password."""
    given = {"DATABASE_URL": "postgresql://h:1/d", "REDIS_URL": "redis://h:1/0", name: as_variable(url)}
    with patch.dict(os.environ, given):
        try:
            settings = load()
        except ConfigurationError as error:
            assert all(is_one_clear_line(fault) for fault in error.faults), error
            assert "secret" not in str(error)
            return None
    assert "secret" not in repr(settings)
    return settings.database_url.get_secret_value() if name == "DATABASE_URL" else settings.broker_url


@inputs(0.25)
@given(urls_of("postgresql", "postgres", "postgresql+psycopg", "mysql", "POSTGRES"))
def test_database_urls(url: str) -> None:
    """What is accepted, SQLAlchemy makes an engine of, and libpq can read the parameters."""
    accepted = shown_or_refused("DATABASE_URL", url)
    if accepted is None:
        return
    parsed = make_url(accepted)
    engine = create_engine(parsed)
    _, parameters = engine.dialect.create_connect_args(parsed)
    parameters.pop("context", None)  # SQLAlchemy's own, for psycopg
    conninfo.make_conninfo("", **parameters)
    Database(accepted).dispose()
    for host in str(parameters.get("host", "")).split(","):
        host.partition("%")[0].encode("idna")


@inputs(0.25)
@given(
    urls_of(
        *(
            "redis",
            "rediss",
            "amqp",
            "amqps",
            "pyamqp",
            "AMQP",
            "memory",
            "sentinel",
            "redis+socket",
            "amqp+x",
        ),
        *("sqla+postgresql", "filesystem", "http"),
    )
)
def test_broker_urls(url: str) -> None:
    """What is accepted, kombu accepts, and so does redis-py if the broker is Redis."""
    accepted = shown_or_refused("CELERY_BROKER_URL", url)
    if accepted is None:
        return
    connection = Connection(accepted)
    assert connection.transport is not None
    assert is_one_clear_line(connection.as_uri())
    if accepted.startswith(("redis://", "rediss://")):
        made = redis_client(accepted).connection_pool.connection_kwargs
        assert (made["host"], made.get("port", 6379)) == (connection.hostname, connection.port or 6379)
    for place in () if accepted.startswith("sqla") else accepted.split(";"):
        (Connection(place).hostname or "").encode("idna")


@pytest.fixture
def app(deployed: None, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Celery:
    make_users(ledger.url, 3)
    monkeypatch.setenv("SYNC_HANDLER", "tests.support.handlers:complete")
    import worker_scheduler

    worker_scheduler.app.loader.import_default_modules()
    return worker_scheduler.app


@pytest.fixture
def nothing_is_written(ledger: Ledger, broker: Broker) -> Iterator[None]:
    yield
    assert not any(ledger.everything().values())
    assert broker.everything() == {}


@pytest.mark.usefixtures("nothing_is_written")
@inputs(0.15)
@given(
    task_id=st.one_of(texts, st.uuids().map(str)),
    arguments=st.lists(values_of_json, min_size=3, max_size=4),
)
def test_job_arguments(app: Celery, task_id: str, arguments: list[Any]) -> None:
    """Whatever a message contains, it runs a job only if there is one with its id."""
    assert app.tasks["sync_user"].apply(arguments, task_id=task_id).successful()


@pytest.mark.usefixtures("nothing_is_written")
@inputs(0.05)
@given(name=st.sampled_from(["daily_tick", "backfill"]), options=options_of(BackfillOptions))
def test_tasks(app: Celery, name: str, options: dict[str, Any]) -> None:
    result = app.tasks[f"scheduler.{name}"].apply(kwargs={**options, "dry_run": True}, throw=False)
    if result.failed():
        assert isinstance(result.result, SchedulerError), result.traceback
        assert is_one_clear_line(str(result.result))
    else:
        assert result.result["outcome"] in {"dry_run", "nothing_to_do"}


option = st.sampled_from(
    sorted({*BackfillOptions.model_fields, *DailyOptions.model_fields, "json", "x"})
).map(lambda name: "--" + name.replace("_", "-"))
# A command line cannot contain NUL or lone surrogates.
word = texts.filter(lambda text: "\0" not in text and "\ud800" not in text).map(
    lambda text: text.encode(errors="ignore").decode()
)
words = st.lists(st.one_of(st.tuples(option, word).map("=".join), option, word), max_size=5)


@pytest.mark.usefixtures("nothing_is_written")
@inputs(0.05)
@given(command=st.sampled_from(["daily", "backfill"]), words=words)
def test_commands(app: Celery, scheduler: Scheduler, command: str, words: list[str]) -> None:
    required = ["--backfill-days=1"] if command == "backfill" else []
    outcome = scheduler(command, "--dry-run", *required, *words)
    assert outcome.status in {0, 2, 3}, outcome
    assert "Traceback" not in outcome.stderr
    assert outcome.status == 0 or all(is_one_clear_line(line) for line in outcome.errors)
    assert (outcome.status == 0) == (not outcome.errors), outcome


PARTS = [
    *((name,) for name in good("")),
    *(("headers", name) for name in [*good("")["headers"], "compression", "x"]),
    *(("properties", name) for name in good("")["properties"]),
    *(("properties", "delivery_info", name) for name in ("exchange", "routing_key")),
]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message of `sync_user` of which up to three parts have other values or are missing."""
    message: Any = good(draw(st.sampled_from(["daily", "scheduler"])))
    for path in draw(st.lists(st.sampled_from(PARTS), max_size=3)):
        part: Any = message
        for name in path[:-1]:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[path[-1]] = draw(values_of_json)
            if draw(st.integers(0, 4)) == 0:
                del part[path[-1]]
    if draw(st.booleans()):
        message["body"] = json.dumps(draw(st.lists(values_of_json, min_size=2, max_size=4)))
    return json.dumps(message).encode()


raw_messages = st.one_of(
    messages(),
    messages(),
    messages(),
    st.binary(max_size=60),
    values_of_json.map(json.dumps).map(str.encode),
)


@pytest.fixture
def worker(environment: dict[str, str], ledger: Ledger, tmp_path: Path) -> Iterator[Process]:
    environment |= {
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "HANDLER_FOLDER": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    with started(worker_of(environment, tmp_path / "log", "scheduler,daily,backfill")) as process:
        process.wait_for_log("ready.")
        yield process


@inputs(0.025)
@given(
    entries=st.lists(raw_messages, min_size=10, max_size=10), queue=st.sampled_from(["daily", "scheduler"])
)
def test_messages_in_queues(worker: Process, broker: Broker, entries: list[bytes], queue: str) -> None:
    """Each is taken, by a task or into the list of what was set aside, and the worker goes on."""
    if not worker.running:  # for the next example
        worker.start()
    with Redis.from_url(broker.url) as redis:
        redis.lpush(f"{broker.key_prefix}{queue}", *entries)
    wait_until(
        lambda: not worker.running or (not broker.counts() and broker.unacknowledged() == 0),
        20,
        "messages taken",
    )
    assert worker.running, worker.log()[-5000:]
    assert "Connection to broker lost" not in worker.log(), worker.log()[-5000:]
