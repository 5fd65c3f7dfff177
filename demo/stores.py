"""The demo's own schema and keys in Postgres and Redis; it touches nothing else on these servers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex

import psycopg
from psycopg.sql import SQL, Identifier
from redis import Redis
from sqlalchemy.engine import make_url

STATES = ("PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED")


@dataclass(frozen=True)
class Stores:
    """Where the demo keeps its tables and keys."""

    database_url: str
    redis_url: str
    redis_key_prefix: str


@contextmanager
def own_schema(database_url: str, redis_url: str) -> Iterator[Stores]:
    """Creates a schema and a key prefix on servers that others use too; removes both at the end."""
    name = f"worker_scheduler_demo_{token_hex(4)}"
    url = make_url(database_url).set(drivername="postgresql")
    administration = url.render_as_string(hide_password=False)
    with _connect(administration) as connection:
        connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
    try:
        # The URL sets the search path of every connection, so that tables are created and found only there.
        options = f"{url.query.get('options', '')} -csearch_path={name}".strip()
        own = url.update_query_dict({"options": options})
        yield Stores(own.render_as_string(hide_password=False), redis_url, f"{name}:")
    finally:
        with _connect(administration) as connection:
            connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(name)))
        with Redis.from_url(redis_url) as redis:
            for key in redis.scan_iter(match=f"{name}:*", count=1000):
                redis.delete(key)


def make_users(stores: Stores, count: int) -> None:
    """Creates the application's table of users, with the two columns that the scheduler reads."""
    with _connect(stores.database_url) as connection:
        connection.execute("CREATE TABLE users (id uuid PRIMARY KEY, github_login text NOT NULL)")
        connection.execute("CREATE UNIQUE INDEX ON users (lower(github_login))")
        connection.execute(
            "INSERT INTO users SELECT gen_random_uuid(), 'demo-user-' || number"
            " FROM generate_series(1, %s::int) AS number",
            [count],
        )


@dataclass(frozen=True)
class Run:
    """The run that Beat triggered, as the tables show it."""

    partition_key: str
    jobs: dict[str, int]
    created_at: datetime
    first_started_at: datetime | None
    last_completed_at: datetime | None
    an_error: str | None

    @property
    def total(self) -> int:
        """How many jobs of the run are planned so far."""
        return sum(self.jobs.values())

    @property
    def is_over(self) -> bool:
        """Whether there are jobs and none of them waits or runs."""
        return self.total > 0 and not self.jobs["PENDING"] and not self.jobs["RUNNING"]


class Ledger:
    """Reads the tables of the scheduler over one connection."""

    def __init__(self, stores: Stores) -> None:
        self._connection = _connect(stores.database_url)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def run(self) -> Run | None:
        """Returns the first run, or None before Beat has triggered it."""
        found = self._connection.execute(
            "SELECT partition_key, created_at FROM sync_runs ORDER BY created_at LIMIT 1"
        ).fetchone()
        if found is None:
            return None
        partition_key, created_at = found
        counts = self._connection.execute(
            "SELECT status, count(*) FROM sync_jobs WHERE partition_key = %s GROUP BY 1",
            [partition_key],
        ).fetchall()
        ends = self._connection.execute(
            "SELECT min(started_at), max(completed_at), min(error_message)"
            " FROM sync_jobs WHERE partition_key = %s",
            [partition_key],
        ).fetchone()
        assert ends is not None
        return Run(partition_key, dict.fromkeys(STATES, 0) | dict(counts), created_at, *ends)


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=5)
