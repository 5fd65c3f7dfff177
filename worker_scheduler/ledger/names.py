"""Puts the schema of the ledger's tables in front of their names in each statement.

Statements say `sync_jobs`. Which table that is would depend on the search_path of the role or the database,
and another schema in it may have a table of the same name. So each new connection looks where the tables
are, and each statement gets that schema before it is sent. USERS_RELATION is left as it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import Connection, text

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger.all_tables import metadata
from worker_scheduler.ledger.control_tables import STOPPED_RUNS
from worker_scheduler.ledger.formats import BinaryCursor

VERSION_TABLE = "worker_scheduler_version"

_SCHEMA = "ledger_schema"
"""The attribute of a psycopg connection that says in which schema the tables are; None if there were none
when it began, and while statements are sent as they are written.
"""

_DIVIDED = "ledger_is_divided"
"""The attribute that says whether `sync_jobs` is divided by months."""

# Nothing within double quotes, such as USERS_RELATION, and no name after a point: it has its schema.
_NAME = re.compile(
    r'"[^"]*"'
    rf"|(?<![\w.$])({'|'.join([*metadata.tables, VERSION_TABLE, STOPPED_RUNS])}"
    r"|(?:sync_jobs|sync_requests|sync_job_events)_(?:monthless|[0-9]{4}_[0-9]{2})"
    r"|sync_jobs_add_month|sync_history_add_month)(?![\w$])"
)
_WHERE = """
SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.pg_table_is_visible(c.oid),
    pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
    EXISTS (SELECT FROM pg_catalog.pg_class j
            WHERE j.relname = 'sync_jobs' AND j.relnamespace = n.oid AND j.relkind = 'p')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'worker_scheduler_version' AND c.relkind = 'r' AND c.relpersistence <> 't'
ORDER BY 2 DESC, 3 DESC, 1
"""


class QualifyingCursor(BinaryCursor):
    """A cursor that names the schema of the tables in each statement."""

    def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
        """As psycopg's; SQLAlchemy gives each statement as text."""
        schema = getattr(self.connection, _SCHEMA, None)
        statement = query if schema is None else _in_schema(query, schema)
        return super().execute(statement, *arguments, **named)


def look(connection: psycopg.Connection[Any], *, by_search_path: bool) -> None:
    """Finds out in which schema the tables are, for the statements of a new connection.

    by_search_path: only a schema in the search_path counts, since the operator has chosen that path for
    this very connection. Otherwise the only schema with the tables counts, whatever the search_path.

    Raises ConfigurationError if it could be any of several.
    """
    found = connection.execute(_WHERE).fetchall()
    connection.commit()
    schema = _chosen([row[:3] for row in found], by_search_path=by_search_path)
    setattr(connection, _SCHEMA, schema)
    setattr(connection, _DIVIDED, (schema, True) in {(row[0], row[3]) for row in found})


def schema_of(connection: Connection) -> str | None:
    """The schema of the tables, quoted; None if there were none when the connection began."""
    return getattr(_driver(connection), _SCHEMA, None)


def is_divided(connection: Connection) -> bool:
    """Whether `sync_jobs` is divided by months; False if there were no tables when the connection began."""
    return bool(getattr(_driver(connection), _DIVIDED, False))


@contextmanager
def as_written(connection: Connection) -> Iterator[None]:
    """While the block runs, statements are sent as they are written: for migrations."""
    driver, schema = _driver(connection), schema_of(connection)
    setattr(driver, _SCHEMA, None)
    try:
        yield
    finally:
        setattr(driver, _SCHEMA, schema)


def search_in_schema(connection: Connection) -> None:
    """Puts the schema of the tables first into the search_path until the transaction ends; if there are no
    tables yet, the schema in which new ones are made.
    """
    connection.execute(_SEARCH, {"schema": schema_of(connection)})


_SEARCH = text(
    """
    SELECT set_config('search_path', concat_ws(', ', coalesce(:schema, quote_ident(current_schema())),
                                               nullif(current_setting('search_path'), '')), true)
    """
)


def _chosen(found: Sequence[tuple[str, bool, bool]], *, by_search_path: bool) -> str | None:
    """The schema of the tables; None if there are none. Raises ConfigurationError if it could be any of
    several.

    found: schemas, whether search_path leads to their table, and whether the role may use them.
    """
    # If it may use none, the first statement says what the role lacks.
    usable = [schema for schema, _, may_use in found if may_use] or [schema for schema, *_ in found]
    if found and (found[0][1] or (len(usable) == 1 and not by_search_path)):
        return str(usable[0])
    if not found or by_search_path:
        return None
    raise ConfigurationError(
        [
            f"the tables are in the schemas {', '.join(usable)}, and search_path has none of them: add"
            " ?options=-csearch_path%3DSCHEMA to DATABASE_URL"
        ]
    )


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


@lru_cache(maxsize=1000)
def _in_schema(statement: str, schema: str) -> str:
    def qualified(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        # For psycopg a percent sign begins a parameter. Within a text a quote would end the text.
        prefix = schema.replace("%", "%%")
        quoted = statement[match.start() - 1 : match.start()] == "'"
        return f"{prefix.replace(chr(39), chr(39) * 2) if quoted else prefix}.{match[1]}"

    return _NAME.sub(qualified, statement)
