"""The history of requests: what is stored of a request, and when there is a row."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from tests.support.contexts import NOON
from tests.support.ledger import Ledger
from worker_scheduler.errors import BadInput, Interrupted, Refused, SchedulerError, StoreUnavailable
from worker_scheduler.ledger import requests
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.requests import Asked

REFUSALS = [Refused("daily:2026-11-23 is cancelled"), BadInput("KEY='x' is unknown")]

ASKED = Asked(
    verb="pause",
    partition_key="daily:2026-11-23",
    actor="ada@desk",
    source="cli ada@desk",
    reason="wrong users",
    options={"until": NOON + timedelta(hours=2), "user_ids": [uuid4(), uuid4()], "limit": 50, "all": True},
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    yield database
    database.dispose()


def note(database: Database, asked: Asked, outcome: str = "paused", **more: object) -> None:
    with database.transaction() as connection:
        requests.record(connection, asked, outcome, **{"now": NOON, **more})  # type: ignore[arg-type]


def test_a_row_says_who_asked_for_what_and_what_came_of_it(database: Database, ledger: Ledger) -> None:
    run_id = uuid4()
    note(database, ASKED, run_id=run_id, detail="3 jobs")
    assert ledger.row("SELECT * FROM sync_requests") == {
        "request_id": ASKED.request_id,
        "requested_at": NOON,
        "verb": "pause",
        "partition_key": "daily:2026-11-23",
        "run_id": run_id,
        "actor": "ada@desk",
        "source": "cli ada@desk",
        "reason": "wrong users",
        "options": {"until": "2026-11-23 14:00:00+00:00", "user_ids": 2, "limit": 50, "all": True},
        "outcome": "paused",
        "detail": "3 jobs",
    }


def test_the_row_comes_and_goes_with_the_change(database: Database, ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        requests.record(connection, ASKED, "paused", now=NOON)
        raise ZeroDivisionError
    assert not ledger.rows("SELECT * FROM sync_requests")


def test_texts_are_bounded_escaped_and_without_secrets(database: Database, ledger: Ledger) -> None:
    odd = "a\x00b\x1b[2J\u202e" + "\N{PILE OF POO}" + "x" * 3000
    url = "postgresql://ada:hunter2@db/ledger"
    asked = replace(ASKED, actor=odd, source=odd, reason=odd, options={"odd": odd, "url": url})
    note(database, asked, detail=f"{url} {odd}")
    row = ledger.row("SELECT * FROM sync_requests")
    stored = [row["actor"], row["source"], row["reason"], row["options"]["odd"], row["detail"]]
    for text, longest in zip(stored, (200, 200, 1000, 210, 2000), strict=True):
        assert len(text) <= longest
        assert "a\\x00b\\x1b[2J\\u202e" in text
    assert "hunter2" not in str(row)
    assert row["options"]["url"] == "postgresql://***@db/ledger"


def test_another_execution_of_a_request_adds_no_row(database: Database, ledger: Ledger) -> None:
    """A task is executed again and again while a store is away."""
    asked = replace(ASKED, request_id=requests.id_of_task("a-task"))
    for minutes in (0, 1, 60):
        note(database, asked, now=NOON + timedelta(minutes=minutes))
    assert ledger.value("SELECT count(*) FROM sync_requests") == 1
    others = (
        ("resumed", asked),
        ("paused", replace(asked, partition_key="daily:2026-11-24")),
        ("paused", replace(asked, options={})),
        ("paused", replace(asked, verb="cancel")),
        ("paused", replace(asked, request_id=requests.id_of_task("another-task"))),
    )
    for seconds, (outcome, other) in enumerate(others, start=1):
        note(database, other, outcome, now=NOON + timedelta(seconds=seconds))
    note(database, asked, now=NOON + timedelta(days=2))
    assert ledger.value("SELECT count(*) FROM sync_requests") == 7


def test_two_executions_at_the_same_moment_do_not_fail(database: Database, ledger: Ledger) -> None:
    note(database, ASKED)
    note(database, ASKED, "resumed")
    assert ledger.value("SELECT count(*) FROM sync_requests") == 1


def test_the_same_command_twice_has_two_rows(database: Database, ledger: Ledger) -> None:
    for _ in range(2):
        note(database, replace(ASKED, request_id=uuid4()))
    assert ledger.value("SELECT count(*) FROM sync_requests") == 2


@pytest.mark.parametrize("error", REFUSALS)
def test_a_refusal_has_a_row(error: SchedulerError, database: Database, ledger: Ledger) -> None:
    with (
        pytest.raises(type(error)),
        requests.refusals_recorded(database, lambda: NOON, ASKED),
        database.transaction() as connection,
    ):
        requests.record(connection, ASKED, "paused", now=NOON)
        raise error
    row = ledger.row("SELECT * FROM sync_requests")
    assert (row["outcome"], row["detail"], row["run_id"]) == ("refused", str(error), None)


@pytest.mark.parametrize("error", [Interrupted("interrupted"), StoreUnavailable("Postgres is away")])
def test_what_was_not_decided_has_no_row(error: SchedulerError, database: Database, ledger: Ledger) -> None:
    with pytest.raises(type(error)), requests.refusals_recorded(database, lambda: NOON, ASKED):
        raise error
    assert not ledger.rows("SELECT * FROM sync_requests")


def test_without_the_table_the_refusal_is_still_the_answer(database: Database, ledger: Ledger) -> None:
    ledger.execute("DROP TABLE sync_requests")
    with pytest.raises(Refused), requests.refusals_recorded(database, lambda: NOON, ASKED):
        raise Refused("no")
