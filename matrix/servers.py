"""The servers of each row. Checks that they have the versions that the row names."""

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
    """A server does not answer, or has another version than its row names."""


@contextmanager
def standing_pair() -> Iterator[Mapping[str, str]]:
    """Yields the oldest supported servers, which must already run on this machine."""
    require_postgres(DATABASE_URL, 15)
    require_redis(REDIS_URL, 7)
    yield {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL}


@contextmanager
def rabbitmq() -> Iterator[Mapping[str, str]]:
    """Yields RabbitMQ as the broker, with an embedded Postgres and, for RedBeat, an embedded Valkey."""
    require_rabbitmq(BROKER_URL)
    with embedded.servers() as started:
        require_postgres(started.database_url, 18)
        yield {
            "DATABASE_URL": started.database_url,
            "REDIS_URL": started.redis_url,
            "MATRIX_BROKER_URL": BROKER_URL,
        }


def require_postgres(url: str, major: int) -> None:
    """Raises WrongServer unless a Postgres of this major version answers."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            found = connection.info.server_version // 10_000
    except psycopg.OperationalError as error:
        raise WrongServer(f"PostgreSQL {major} does not answer: {error}") from error
    if found != major:
        raise WrongServer(f"PostgreSQL {found} answers, not {major}")


def require_redis(url: str, major: int) -> None:
    """Raises WrongServer unless a Redis of this major version answers."""
    try:
        with Redis.from_url(url, socket_connect_timeout=5) as client:
            info = client.info("server")
    except RedisError as error:
        raise WrongServer(f"Redis {major} does not answer: {error}") from error
    if "valkey_version" in info:  # Valkey also reports a redis_version, for old clients
        raise WrongServer(f"Valkey {info['valkey_version']} answers, not Redis {major}")
    if not str(info["redis_version"]).startswith(f"{major}."):
        raise WrongServer(f"Redis {info['redis_version']} answers, not {major}")


def require_rabbitmq(url: str) -> None:
    """Raises WrongServer unless a RabbitMQ answers."""
    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.connect()
            product = connection.connection.server_properties["product"]
    except OSError as error:
        raise WrongServer(f"RabbitMQ does not answer: {error}") from error
    if product != "RabbitMQ":
        raise WrongServer(f"{product} answers, not RabbitMQ")
