"""Which connections are tested before they are used."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text

from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import database as module
from worker_scheduler.ledger.database import Database


@pytest.fixture
def database(direct_database_url: str) -> Iterator[Database]:
    """Without a pooler, which would keep the connection when its server process ends."""
    database = Database(direct_database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    yield database
    database.dispose()


def process_id(database: Database) -> int:
    with database.autocommit() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def end(url: str, process: int) -> None:
    """Ends a connection as a restart of Postgres does."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", [process])


def test_a_connection_that_has_died_while_it_was_idle_is_replaced(
    database: Database, direct_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SURELY_ALIVE_SECONDS", 0)
    first = process_id(database)
    assert process_id(database) == first
    end(direct_database_url, first)
    assert process_id(database) != first


def test_a_connection_that_was_just_used_is_not_tested(
    database: Database, direct_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SURELY_ALIVE_SECONDS", 600)
    first = process_id(database)
    end(direct_database_url, first)
    with pytest.raises(StoreUnavailable):
        process_id(database)
    assert process_id(database) != first
