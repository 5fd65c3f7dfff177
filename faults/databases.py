"""Creates the databases of the lanes, with the product's tables and the users."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal

from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.schema import upgrade

_TEMPLATE = "faults_template"
_USERS = """
CREATE TABLE users (number int PRIMARY KEY, id uuid NOT NULL UNIQUE);
INSERT INTO users SELECT number, md5('user-' || number)::uuid FROM generate_series(0, {last}) AS number;
"""
# Replaced for each fault. It selects the users that the product sees, marks those whose jobs the handler
# retries once (`late-`), and may repeat each user, as a careless join does: each must still get one job.
_PARTICIPANTS = """
CREATE OR REPLACE VIEW participants AS
SELECT id, CASE WHEN number < {late} THEN 'late-' ELSE 'user-' END || number AS github_login
FROM users CROSS JOIN generate_series(1, {times}) WHERE number >= {first} AND number < {end}
"""
_BAD_HANDLERS = """
CREATE OR REPLACE VIEW participants AS
SELECT id, coalesce(bad.name, 'user') || '-' || number AS github_login
FROM users LEFT JOIN (VALUES {bad}) AS bad(number, name) USING (number)
WHERE number >= {first} AND number < {end}
"""
_BROKEN = """
CREATE OR REPLACE VIEW participants AS
SELECT id, 'user-' || 1 / (number - number) AS github_login
FROM users WHERE number >= {first} AND number < {end}
"""


def with_database(url: str, name: str | int) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def make_template(server_url: str, users: int) -> None:
    """Creates a database with the product's tables and that many users, which `make_database` copies."""
    _administer(server_url, SQL("CREATE DATABASE {}").format(Identifier(_TEMPLATE)))
    url = with_database(server_url, _TEMPLATE)
    database = Database(url)
    upgrade(database)
    database.dispose()
    with psycopg.connect(url) as connection:
        connection.execute(SQL(_USERS).format(last=Literal(users - 1)))


def make_database(server_url: str, name: str) -> str:
    """Copies the template; returns the URL of the copy."""
    create = SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(_TEMPLATE))
    _administer(server_url, create)
    return with_database(server_url, name)


def show_participants(database_url: str, first: int, count: int, late: int, times: int) -> None:
    """Makes the product see `count` users from `first` on, each `times` times.

    The jobs of the first `late` of them are retried once.
    """
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            SQL(_PARTICIPANTS).format(
                first=Literal(first),
                end=Literal(first + count),
                late=Literal(first + late),
                times=Literal(times),
            )
        )


def name_bad_handlers(database_url: str, first: int, count: int, bad: Mapping[int, str]) -> None:
    """Makes the product see `count` users from `first` on, some with logins that name a bad handler."""
    named = SQL(", ").join(
        SQL("({}, {})").format(Literal(number), Literal(name)) for number, name in bad.items()
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            SQL(_BAD_HANDLERS).format(bad=named, first=Literal(first), end=Literal(first + count))
        )


def break_participants(database_url: str, first: int, count: int) -> None:
    """Makes the view raise an error for `count` users from `first` on, until `show_participants`."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(SQL(_BROKEN).format(first=Literal(first), end=Literal(first + count)))


def _administer(server_url: str, statement: Composed) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)
