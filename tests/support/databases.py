"""Makes and drops databases on the test server; knows no table."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy.engine import make_url


def url_of(server_url: str, database: str) -> str:
    """The URL of another database on the same server."""
    url = make_url(server_url).set(drivername="postgresql", database=database)
    return url.render_as_string(hide_password=False)


def pooled(url: str, pooler: str | None) -> str:
    """The same database by way of the pooler at `host:port`, where there is one."""
    if pooler is None:
        return url
    host, _, port = pooler.partition(":")
    return make_url(url).set(host=host, port=int(port)).render_as_string(hide_password=False)


@contextmanager
def new_database(server_url: str, template: str = "template1") -> Iterator[str]:
    """The name of a fresh copy of the template; dropped afterwards, whoever is still connected."""
    name = f"test_{uuid4().hex}"
    administration = url_of(server_url, make_url(server_url).database or "postgres")
    create = SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template))
    drop = SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name))
    with psycopg.connect(administration, autocommit=True) as connection:
        connection.execute(create)
    try:
        yield name
    finally:
        with psycopg.connect(administration, autocommit=True) as connection:
            connection.execute(drop)


@contextmanager
def read_only(server_url: str, database: str) -> Iterator[None]:
    """Sessions that begin meanwhile find the database as they would find a standby: it takes no writes."""
    administration = url_of(server_url, make_url(server_url).database or "postgres")
    alter = SQL("ALTER DATABASE {} {} default_transaction_read_only")
    with psycopg.connect(administration, autocommit=True) as connection:
        connection.execute(alter.format(Identifier(database), SQL("SET")) + SQL(" = on"))
        try:
            yield
        finally:
            connection.execute(alter.format(Identifier(database), SQL("RESET")))
