"""The fixtures of every test: servers, and a database and Redis keys of its own."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from hypothesis import settings as hypothesis_settings
from redis import Redis
from sqlalchemy import text

from tests.support import databases
from tests.support.application import fresh_app
from tests.support.command_line import Outcome, in_this_process
from tests.support.contexts import NOON, frozen_time_in_the_ledger
from tests.support.databases import new_database, pooled, url_of
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from worker_scheduler import embedded
from worker_scheduler.config.settings import Settings

# On a busy machine any example is slow now and then; pytest-timeout catches one that hangs.
hypothesis_settings.register_profile("tests", deadline=None)
hypothesis_settings.load_profile("tests")

GIVEN = {name: os.environ.get(name) for name in ("DATABASE_URL", "REDIS_URL")}
POOLER = os.environ.get("TEST_POOLER")
"""host:port of a PgBouncer in front of the given Postgres; the tests' own connections go through it."""
_database_numbers = count(1)


@pytest.fixture(autouse=True)
def no_scheduler_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the scheduler's variables, so that a test sees only those that it sets."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def servers() -> Iterator[embedded.Servers]:
    """Postgres and Valkey: those of DATABASE_URL and REDIS_URL if both are set, else embedded ones."""
    database_url, redis_url = GIVEN["DATABASE_URL"], GIVEN["REDIS_URL"]
    if database_url and redis_url:
        yield embedded.Servers(database_url, redis_url)
    elif database_url or redis_url:
        pytest.exit("set both DATABASE_URL and REDIS_URL, or neither", returncode=2)
    else:
        with embedded.servers(databases.folder_in_memory()) as started:
            yield started


@pytest.fixture(scope="session")
def migrated_template(servers: embedded.Servers) -> Iterator[str]:
    """The name of a migrated database, which is copied for each test."""
    from worker_scheduler.ledger import histories, months
    from worker_scheduler.ledger.database import Database
    from worker_scheduler.ledger.schema import upgrade

    with new_database(servers.database_url) as name:
        url = url_of(servers.database_url, name)
        database = Database(url.replace("postgresql:", "postgresql+psycopg:", 1))
        upgrade(database)
        with database.autocommit() as connection:  # as after some time in production
            for now in (NOON, datetime.now(UTC)):
                months.ensure_next(connection, now)
                for history in histories.History:
                    for month in (now.date().replace(day=1), months.next_month(now)):
                        histories.ensure(connection, history, month)
            # No day becomes due while the tests run, at whatever hour that is.
            connection.execute(text("UPDATE sync_origin SET since = now() + interval '1 day'"))
        database.dispose()
        yield name


@pytest.fixture
def database_url(servers: embedded.Servers, migrated_template: str) -> Iterator[str]:
    """The URL of the test's own database, migrated and without users."""
    with new_database(servers.database_url, migrated_template) as name:
        yield pooled(url_of(servers.database_url, name), POOLER)


@pytest.fixture
def empty_database_url(servers: embedded.Servers) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    with new_database(servers.database_url) as name:
        yield pooled(url_of(servers.database_url, name), POOLER)


@pytest.fixture
def direct_database_url(servers: embedded.Servers) -> Iterator[str]:
    """As `empty_database_url`, without the pooler: for tests of what a session or its options set."""
    with new_database(servers.database_url) as name:
        yield url_of(servers.database_url, name)


@pytest.fixture
def redis_key_prefix() -> str:
    """The prefix of every Redis key of the test; on a shared server it keeps tests apart."""
    return f"test-{uuid4().hex}:" if GIVEN["REDIS_URL"] else ""


@pytest.fixture
def redis_url(servers: embedded.Servers, redis_key_prefix: str) -> Iterator[str]:
    """The URL of the test's own logical database; on a shared server, the given URL."""
    url = servers.redis_url
    if not redis_key_prefix:
        with Redis.from_url(url) as client:
            databases = int(client.config_get("databases")["databases"])
        number = 1 + next(_database_numbers) % (databases - 1)
        url = urlunsplit(urlsplit(url)._replace(path=f"/{number}"))
    yield url
    with Redis.from_url(url) as client:
        if redis_key_prefix:
            for key in client.scan_iter(match=f"{redis_key_prefix}*", count=1000):
                client.delete(key)
        else:
            client.flushdb()


@pytest.fixture
def environment(database_url: str, redis_url: str, redis_key_prefix: str, tmp_path: Path) -> dict[str, str]:
    """The whole environment of a subprocess; a test adds its own variables."""
    measuring = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return {
        **measuring,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "REDIS_KEY_PREFIX": redis_key_prefix,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(tmp_path),
    }


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    """The tables of the test's own database."""
    return Ledger(database_url)


@pytest.fixture
def broker(redis_url: str, redis_key_prefix: str) -> Broker:
    """The queues of the test's own Redis keys."""
    return Broker(redis_url, redis_key_prefix)


@pytest.fixture
def deployed(
    database_url: str, redis_url: str, redis_key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Configures this process as a deployment is, without pauses; the app is made on first use."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("REDIS_KEY_PREFIX", redis_key_prefix)
    monkeypatch.setenv("ENQUEUE_SLEEP_SECONDS", "0")
    with fresh_app():
        yield


@pytest.fixture
def read_only(
    servers: embedded.Servers, database_url: str, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], AbstractContextManager[None]]:
    """A block in which the test's database is read-only, as after a failover to a standby.

    Connects without the pooler, which would reuse sessions that began before the block.
    """
    name = urlsplit(database_url).path.lstrip("/")
    monkeypatch.setenv("DATABASE_URL", url_of(servers.database_url, name))
    return lambda: databases.read_only(servers.database_url, name)


@pytest.fixture
def scheduler(deployed: None) -> Callable[..., Outcome]:
    """The command `scheduler` as a function; each call reads the environment again."""

    def call(*arguments: str) -> Outcome:
        with fresh_app(), frozen_time_in_the_ledger():
            return in_this_process(*arguments)

    return call
