"""Which servers a row has, and that they are what its name says; it starts only the embedded ones."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from kombu import Connection
from redis import Redis
from redis.exceptions import RedisError

from worker_scheduler import embedded

DATABASE_URL = os.environ.get("MATRIX_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS_URL = os.environ.get("MATRIX_REDIS_URL", "redis://127.0.0.1:6379/0")
BROKER_URL = os.environ.get("MATRIX_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//")


class WrongServer(Exception):
    """A server is away, or another one than its row's name says."""


@contextmanager
def standing_pair() -> Iterator[Mapping[str, str]]:
    """The oldest ones, that the machine runs."""
    require_postgres(DATABASE_URL, 15)
    require_redis(REDIS_URL, 7)
    yield {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL}


@contextmanager
def rabbitmq() -> Iterator[Mapping[str, str]]:
    """A broker that is not Redis; RedBeat stays on Valkey."""
    require_rabbitmq(BROKER_URL)
    with embedded.servers() as started:
        require_postgres(started.database_url, 18)
        yield {
            "DATABASE_URL": started.database_url,
            "REDIS_URL": started.redis_url,
            "MATRIX_BROKER_URL": BROKER_URL,
        }


def require_postgres(url: str, major: int) -> None:
    """Raises WrongServer where another Postgres answers, or none."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            found = connection.info.server_version // 10_000
    except psycopg.OperationalError as error:
        raise WrongServer(f"PostgreSQL {major} does not answer: {error}") from error
    if found != major:
        raise WrongServer(f"PostgreSQL {found} answers, not {major}")


def require_redis(url: str, major: int) -> None:
    """Raises WrongServer where another one answers, or none."""
    try:
        with Redis.from_url(url, socket_connect_timeout=5) as client:
            told = client.info("server")
    except RedisError as error:
        raise WrongServer(f"Redis {major} does not answer: {error}") from error
    if "valkey_version" in told:  # it tells a redis_version, too, for the sake of old clients
        raise WrongServer(f"Valkey {told['valkey_version']} answers, not Redis {major}")
    if not str(told["redis_version"]).startswith(f"{major}."):
        raise WrongServer(f"Redis {told['redis_version']} answers, not {major}")


def require_rabbitmq(url: str) -> None:
    """Raises WrongServer where something else answers, or nothing."""
    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.connect()
            product = connection.connection.server_properties["product"]
    except OSError as error:
        raise WrongServer(f"RabbitMQ does not answer: {error}") from error
    if product != "RabbitMQ":
        raise WrongServer(f"{product} answers, not RabbitMQ")
