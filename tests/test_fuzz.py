"""Odd inputs, through every option, variable and task argument: an answer or a documented error.

A tick that is given here is a dry run, so that whatever is let through still writes nothing.
`make test-fuzz` tries 20,000; by itself this file tries 1,000.
"""

import os
import string
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from tests.support.command_line import Outcome
from tests.support.hypotheses import inputs
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users, user_id
from worker_scheduler.errors import BadInput, ConfigurationError, SchedulerError
from worker_scheduler.options import BackfillOptions, DailyOptions, parse_backfill, parse_daily
from worker_scheduler.settings import Settings, load

pytestmark = pytest.mark.timeout(600)  # 20,000 inputs take their time
Scheduler = Callable[..., Outcome]

# Text that is nearly right finds more than text at random does.
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
    """Nothing in it ends a line, drives a terminal, turns the reading, or cannot be printed."""
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


# The operating system takes neither of them into an environment.
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
    """Whatever a message says, it does a job only if there is one with its id."""
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
# No process can be given these on its command line.
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
