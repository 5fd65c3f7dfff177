"""Connections to Postgres, and its faults in our words; it knows no table.

Works behind PgBouncer in transaction mode: behind a pooler no session state is set, no statement is
prepared on the server, and no session lock is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker_scheduler.errors import ConfigurationError, StoreRefused, StoreUnavailable
from worker_scheduler.ledger import tls
from worker_scheduler.redaction import escape_control_characters, mask_passwords

# Seconds and milliseconds; each can be set otherwise in the URL. Without them a host that vanishes
# is noticed after the kernel's two hours.
_LIBPQ_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_POOL_TIMEOUT_SECONDS = 30
_INVALID = re.compile("connection is bad: invalid ")
_TLS_FAULT = re.compile(r"\bSSL|certificate")
_TABLE_OR_COLUMN_MISSING = {"42P01", "42703"}
_NOT_ALLOWED = "42501"
_READ_ONLY = "25006"
_PLAN_OUTDATED = "0A000"


class Database:
    """A pool of connections to the ledger's Postgres.

    size: connections kept at most; one of a worker's suffices for its jobs, a tick's lock heartbeat
    needs a second. repetitive: for whoever runs the same few statements by key again and again, and
    repeats one that failed. They are planned once a connection; else a connection is tried before use,
    so that a restarted Postgres costs a round trip, not a failed statement.
    """

    def __init__(self, url: str, size: int = 2, *, repetitive: bool = False) -> None:
        parsed = make_url(url)
        self._place = _place(parsed)
        self._tls = tls.defaults(parsed)
        self._repetitive = repetitive
        self._engine = create_engine(
            parsed,
            pool_size=size,
            max_overflow=0,
            pool_pre_ping=not repetitive,
            pool_timeout=_POOL_TIMEOUT_SECONDS,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "prepare_threshold": None,  # PgBouncer in transaction mode, before its 1.21
                "application_name": "worker_scheduler",
                **{k: v for k, v in _LIBPQ_DEFAULTS.items() if k not in parsed.query},
                **self._tls,
            },
        )
        if repetitive:
            event.listen(self._engine, "connect", _plan_once)
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, committed at the end.

        Raises StoreUnavailable, ConfigurationError, and StoreRefused for whatever else Postgres says.
        """
        with self._faults_in_our_words(), self._transactional.begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Each statement is its own transaction: a third of the round trips. Raises likewise."""
        with self._faults_in_our_words(), self._engine.connect() as connection:
            yield connection

    def is_read_only(self) -> bool:
        """Whether it takes no writes: a standby, or a primary that was set so. Raises likewise."""
        with self.autocommit() as connection:
            return bool(connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on")

    def dispose(self) -> None:
        """Closes every idle connection; the pool fills again when it is used."""
        self._engine.dispose()

    @contextmanager
    def _faults_in_our_words(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if _sqlstate(error) in {_READ_ONLY, _PLAN_OUTDATED}:
                # After a failover the name may lead to the new primary, but for connections of before.
                # And a plan that was kept outlives no change of its columns.
                self._engine.dispose()
            raise self._translated(error) from error
        except PoolTimeout as error:
            # The others wait for a server that has stalled; a heartbeat must survive that.
            raise StoreUnavailable(
                f"Postgres at {self._place} is unavailable: no connection of {self._engine.pool.size()}"  # type: ignore[attr-defined]
                f" became free within {_POOL_TIMEOUT_SECONDS} s"
            ) from error

    def _translated(self, error: DBAPIError) -> Exception:
        state = _sqlstate(error)
        reason = reason_of(error)
        if state in _TABLE_OR_COLUMN_MISSING:
            return ConfigurationError(
                [f"the tables do not fit this version ({reason}): run `scheduler migrate`"]
            )
        if is_for_lack_of_a_right(error):
            return ConfigurationError([f"Postgres refuses this role: {reason}"])
        if state is None and (isinstance(error, ProgrammingError) or _INVALID.match(reason)):
            # The driver refused the URL itself: an option that libpq does not know, or a value of one.
            return ConfigurationError([f"DATABASE_URL cannot be used: {reason}"])
        if self._tls and state is None and _TLS_FAULT.search(reason):
            reason = f"{reason}; {tls.SAY_OTHERWISE}"
        if is_outage(error) or (state == _PLAN_OUTDATED and self._repetitive):
            return StoreUnavailable(f"Postgres at {self._place} is unavailable: {reason}")
        return StoreRefused(f"Postgres refused a statement: {reason}")


def _plan_once(connection: psycopg.Connection, _record: object) -> None:
    """Has statements prepared, and planned for whatever key: planning an UPDATE of one job takes Postgres
    twice as long as doing it. Only where the connection leads to Postgres itself: a pooler may run the next
    transaction on another one. It shows, since poolers make up the process id that they announce.
    """
    ((process_id,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    if process_id == connection.info.backend_pid:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.prepare_threshold = 1
    connection.commit()


def is_for_lack_of_a_right(error: DBAPIError) -> bool:
    """Whether the role may not do it."""
    return _sqlstate(error) == _NOT_ALLOWED


def is_outage(error: DBAPIError) -> bool:
    """Whether the server, or the moment, is at fault, not the statement: later it may pass.

    SQLSTATE classes: 08 connection, 25 a transaction in a state of its own, such as read only, 28 and
    3D it does not let us in, 40 rolled back for others' sake, 53 out of resources, 57 shut down or
    cancelled, 58 its disk; 55P03 somebody else holds a lock for too long.
    """
    state = _sqlstate(error)
    if error.connection_invalidated:
        return True
    if state is None:
        # No SQLSTATE: the driver never had an answer.
        return type(error.orig).__name__ in {"OperationalError", "ConnectionTimeout"}
    return state[:2] in {"08", "25", "28", "3D", "40", "53", "57", "58"} or state == "55P03"


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _place(url: URL) -> str:
    host = url.host or url.query.get("host") or "local socket"
    return escape_control_characters(f"{host}:{url.port or 5432}/{url.database}")


def reason_of(error: DBAPIError) -> str:
    """What Postgres or its driver says, in one line and without passwords."""
    # The server's sentence alone, where there is one: not its copy of the statement.
    diagnostic = getattr(error.orig, "diag", None)
    said = (diagnostic and diagnostic.message_primary) or error.orig
    return escape_control_characters(mask_passwords(" ".join(str(said).split())))
