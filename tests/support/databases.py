"""Makes and drops databases on the test server."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier, Literal
from sqlalchemy.engine import make_url

_MEMORY = Path("/dev/shm")
_BYTES_OF_A_TEST_RUN = 8 * 1024**3


def folder_in_memory() -> str | None:
    """A folder in memory for the servers' data: there, a database is made in a tenth of the time. None if
    there is no such folder, or if it has too little space.
    """
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _BYTES_OF_A_TEST_RUN:
        return None
    return str(_MEMORY)


def url_of(server_url: str, database: str) -> str:
    """The URL of another database on the same server."""
    url = make_url(server_url).set(drivername="postgresql", database=database)
    return url.render_as_string(hide_password=False)


def pooled(url: str, pooler: str | None) -> str:
    """The URL of the same database through the pooler at `host:port`, if there is one."""
    if pooler is None:
        return url
    host, _, port = pooler.partition(":")
    return make_url(url).set(host=host, port=int(port)).render_as_string(hide_password=False)


@contextmanager
def new_database(
    server_url: str, template: str = "template1", encoding: str | None = None
) -> Iterator[str]:
    """Yields the name of a new copy of the template; drops it afterwards, with the sessions still open.

    encoding: another one than the template's, which must then be template0.
    """
    name = f"test_{uuid4().hex}"
    administration = url_of(server_url, make_url(server_url).database or "postgres")
    # FILE_COPY takes half as long here as the default, which writes each page into the log.
    create = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
        Identifier(name), Identifier(template)
    )
    if encoding is not None:
        create += SQL(" ENCODING {} LOCALE 'C'").format(Literal(encoding))
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
    """Sessions that begin inside the block cannot write, as on a standby."""
    administration = url_of(server_url, make_url(server_url).database or "postgres")
    alter = SQL("ALTER DATABASE {} {} default_transaction_read_only")
    with psycopg.connect(administration, autocommit=True) as connection:
        connection.execute(alter.format(Identifier(database), SQL("SET")) + SQL(" = on"))
        try:
            yield
        finally:
            connection.execute(alter.format(Identifier(database), SQL("RESET")))
