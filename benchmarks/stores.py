"""Databases with users in them. Each measurement gets a fresh copy and an empty Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime

import psycopg
from psycopg.sql import SQL, Composed, Identifier
from redis import Redis
from sqlalchemy.engine import make_url

from worker_scheduler.embedded import Servers
from worker_scheduler.ledger import months
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.schema import upgrade

# A fixed day, so that every process of a benchmark uses the same; long before the days of the finished runs
# that steady_state.py makes.
DAY = date(2020, 1, 1)
KEY = f"daily:{DAY}"

_COPY = "bench"
_USERS = """
CREATE TABLE users (id uuid PRIMARY KEY, github_login text NOT NULL);
INSERT INTO users SELECT gen_random_uuid(), 'user-' || number FROM generate_series(1, %d) AS number;
CREATE UNIQUE INDEX users_github_login ON users (lower(github_login));
"""


@dataclass(frozen=True)
class Stores:
    """A migrated database with users, and an empty Redis database."""

    database_url: str
    redis_url: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process of the product, without pauses and limits."""
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "ENQUEUE_SLEEP_SECONDS": "0",
            "MAX_ENQUEUED_JOBS": "1000000000",
            "LOG_LEVEL": "WARNING",
        }


class StoreCopies:
    """Makes copies of one database with a given number of users."""

    def __init__(self, servers: Servers, users: int) -> None:
        self._servers = servers
        self._template = f"users_{users}"
        self._administer(SQL("CREATE DATABASE {}").format(Identifier(self._template)))
        database = Database(self._url(self._template))
        upgrade(database)
        with database.autocommit() as connection:
            months.ensure(connection, months.new_run_id(datetime.now(UTC)))
        database.dispose()
        with psycopg.connect(self._url(self._template), autocommit=True) as connection:
            connection.execute((_USERS % users).encode())
            connection.execute("VACUUM ANALYZE")

    @contextmanager
    def fresh(self) -> Iterator[Stores]:
        """Yields a new copy. Both stores are idle by then."""
        copy, template = Identifier(_COPY), Identifier(self._template)
        self._administer(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(copy))
        self._administer(SQL("CREATE DATABASE {} TEMPLATE {}").format(copy, template))
        with Redis.from_url(self._servers.redis_url) as redis:
            redis.flushall()
        self._administer(SQL("CHECKPOINT"))
        yield Stores(self._url(_COPY), self._servers.redis_url)

    def drop(self) -> None:
        """Drops the databases, to free disk space for the next size."""
        for name in (_COPY, self._template):
            self._administer(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))

    def _url(self, name: str) -> str:
        url = make_url(self._servers.database_url).set(database=name)
        return url.render_as_string(hide_password=False)

    def _administer(self, statement: SQL | Composed) -> None:
        with psycopg.connect(self._servers.database_url, autocommit=True) as connection:
            connection.execute(statement)
