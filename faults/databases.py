"""Makes the databases of lanes, with the product's tables and the users; it checks nothing."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal

from worker_scheduler.ledger.schema import upgrade

_TEMPLATE = "faults_template"
_USERS = """
CREATE TABLE users (number int PRIMARY KEY, id uuid NOT NULL UNIQUE);
INSERT INTO users SELECT number, md5('user-' || number)::uuid FROM generate_series(0, {last}) AS number;
"""
# Replaced for each fault: the users whom the product sees, and whom the handler puts off once. Repeated,
# as a careless join repeats them: the product has to give each one job all the same.
_PARTICIPANTS = """
CREATE OR REPLACE VIEW participants AS
SELECT id, CASE WHEN number < {late} THEN 'late-' ELSE 'user-' END || number AS github_login
FROM users CROSS JOIN generate_series(1, {times}) WHERE number >= {first} AND number < {end}
"""


def with_database(url: str, name: str | int) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def make_template(server_url: str, users: int) -> None:
    """A database with the product's tables and so many users, for `make_database` to copy."""
    _administer(server_url, SQL("CREATE DATABASE {}").format(Identifier(_TEMPLATE)))
    url = with_database(server_url, _TEMPLATE)
    upgrade(url)
    with psycopg.connect(url) as connection:
        connection.execute(SQL(_USERS).format(last=Literal(users - 1)))


def make_database(server_url: str, name: str) -> str:
    """A copy of the template; its URL."""
    create = SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(_TEMPLATE))
    _administer(server_url, create)
    return with_database(server_url, name)


def show_participants(database_url: str, first: int, count: int, late: int, times: int) -> None:
    """From now on the product sees users `first` and up, each so many times; `late` are put off once."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            SQL(_PARTICIPANTS).format(
                first=Literal(first),
                end=Literal(first + count),
                late=Literal(first + late),
                times=Literal(times),
            )
        )


def _administer(server_url: str, statement: Composed) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)
