"""Connections to Postgres, and the translation of its errors; it knows no table.

It works behind PgBouncer in transaction mode: behind a pooler it sets no session state, prepares no
statement on the server and takes no session lock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from worker_scheduler.errors import ConfigurationError, StoreRefused, StoreUnavailable
from worker_scheduler.ledger import formats, names, tls
from worker_scheduler.redaction import escape_control_characters, one_line

# In seconds, the last in milliseconds; the URL may override each. Without them a host that vanishes is
# noticed after two hours, the kernel's default.
_LIBPQ_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "options": "",  # otherwise libpq takes PGOPTIONS, which may set anything
}
_POOL_TIMEOUT_SECONDS = 30
_SURELY_ALIVE_SECONDS = 0.05
"""A connection that was used so recently is not tested: Postgres cannot have restarted in between, and
while it is away a test could only fail, too. A tick takes its connections one right after the other.
"""
_USED_AT = "used_at"
_INVALID = re.compile("connection is bad: invalid ")
_TLS_FAULT = re.compile(r"\bSSL|certificate")
_TABLE_OR_COLUMN_MISSING = {"42P01", "42703"}
_NOT_ALLOWED = "42501"
_READ_ONLY = "25006"
_PLAN_OUTDATED = "0A000"
_LOCK_NOT_AVAILABLE = "55P03"
_DEADLOCK = "40P01"


class Database:
    """A pool of connections to the ledger's Postgres.

    size: connections at most. A worker's jobs need one, a tick needs another for each heartbeat.
    repetitive: for a process that runs the same few statements by key again and again and repeats one that
    failed. Postgres then plans each statement once per connection. Otherwise each connection that was idle
    is tested before use, so that a restart of Postgres costs a round trip instead of a failed statement.
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
            pool_timeout=_POOL_TIMEOUT_SECONDS,
            # Last in, first out: a thread usually gets the connection that it just returned, whose caches
            # fit its statements.
            pool_use_lifo=not repetitive,
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,  # no column has this type, and looking it up costs a transaction
            connect_args={
                "prepare_threshold": None,  # PgBouncer in transaction mode, before its 1.21
                "application_name": "worker_scheduler",
                **{k: v for k, v in _LIBPQ_DEFAULTS.items() if k not in parsed.query},
                **self._tls,
                "client_encoding": formats.CLIENT_ENCODING,
                "cursor_factory": names.QualifyingCursor,
            },
        )
        by_search_path = "search_path" in str(parsed.query.get("options", ""))

        def prepare(connection: psycopg.Connection, _record: object) -> None:
            formats.prepare(connection)
            names.look(connection, by_search_path=by_search_path)

        event.listen(self._engine, "connect", prepare)
        if repetitive:
            event.listen(self._engine, "connect", _plan_once)
        else:
            for moment in ("connect", "checkin"):
                event.listen(self._engine, moment, _note_use)
            event.listen(self._engine, "checkout", _test_if_idle)
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, committed when the block ends.

        Raises StoreUnavailable, ConfigurationError, and StoreRefused for every other error of Postgres.
        """
        with self._errors_translated(), self._transactional.begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection on which each statement is its own transaction: a third of the round trips. Raises
        as `transaction` does.
        """
        with self._errors_translated(), self._engine.connect() as connection:
            yield connection

    def is_read_only(self) -> bool:
        """Whether the server takes no writes: a standby, or a primary set to read only. Raises as
        `transaction` does.
        """
        with self.autocommit() as connection:
            return bool(connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on")

    def dispose(self) -> None:
        """Closes every idle connection; the pool fills again when it is used."""
        self._engine.dispose()

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if _sqlstate(error) in {_READ_ONLY, _PLAN_OUTDATED, *_TABLE_OR_COLUMN_MISSING}:
                # After a failover the host name may lead to the new primary, but old connections do not.
                # And after a change of columns a cached plan fails. A connection looks for the tables when
                # it begins, and they may have come, or moved to another schema, since then.
                self._engine.dispose()
            raise self._translated(error) from error
        except PoolTimeout as error:
            # The other connections wait for a stalled server; a heartbeat must survive that.
            raise StoreUnavailable(
                f"Postgres at {self._place} is unavailable: none of {self._engine.pool.size()} connections"  # type: ignore[attr-defined]
                f" became free within {_POOL_TIMEOUT_SECONDS} s"
            ) from error

    def _translated(self, error: DBAPIError) -> Exception:
        state = _sqlstate(error)
        reason = postgres_reason(error)
        if state in _TABLE_OR_COLUMN_MISSING:
            return ConfigurationError(
                [f"the tables do not fit this version ({reason}): run `scheduler migrate`"]
            )
        if is_missing_privilege(error):
            return ConfigurationError([f"Postgres refuses this role: {reason}"])
        if state is None and (isinstance(error, ProgrammingError) or _INVALID.match(reason)):
            # The driver refused the URL itself: libpq does not know an option or its value.
            return ConfigurationError([f"DATABASE_URL cannot be used: {reason}"])
        if self._tls and state is None and _TLS_FAULT.search(reason):
            reason = f"{reason}; {tls.SAY_OTHERWISE}"
        if is_outage(error) or (state == _PLAN_OUTDATED and self._repetitive):
            return StoreUnavailable(f"Postgres at {self._place} is unavailable: {reason}")
        return StoreRefused(f"Postgres refused a statement: {reason}")


def _plan_once(connection: psycopg.Connection, _record: object) -> None:
    """Makes Postgres prepare each statement and keep one plan for all keys: planning an UPDATE of one job
    takes twice as long as running it.

    Only on a direct connection: a pooler may run the next transaction on another server connection. The
    process id that a pooler announces is not that of the server, which tells them apart.
    """
    ((process_id,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    if process_id == connection.info.backend_pid:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.prepare_threshold = 1
    connection.commit()


def _note_use(_connection: psycopg.Connection | None, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = time.monotonic()


def _test_if_idle(connection: psycopg.Connection, record: ConnectionPoolEntry, _checkout: object) -> None:
    """Makes the pool open new connections if this one, which was idle, is no longer alive."""
    if time.monotonic() - record.info[_USED_AT] < _SURELY_ALIVE_SECONDS:
        return
    try:
        connection.execute("")
    except psycopg.Error as error:
        if connection.closed:
            raise InvalidatePoolError from error
        raise


def is_missing_privilege(error: DBAPIError) -> bool:
    """Whether the role lacks a right for the statement."""
    return _sqlstate(error) == _NOT_ALLOWED


def is_held_up(error: DBAPIError) -> bool:
    """Whether another transaction has a lock that the statement needs."""
    return _sqlstate(error) in {_LOCK_NOT_AVAILABLE, _DEADLOCK}


def is_outage(error: DBAPIError) -> bool:
    """Whether the cause is the server or the moment, so that the same statement may succeed later.

    SQLSTATE classes: 08 connection, 25 state of the transaction, such as read only, 28 and 3D login
    refused, 40 rolled back because of another transaction, 53 out of resources, 57 shut down or cancelled,
    58 disk; 55P03 another transaction held a lock for too long.
    """
    state = _sqlstate(error)
    if error.connection_invalidated:
        return True
    if state is None:
        # Without SQLSTATE the driver got no answer.
        return type(error.orig).__name__ in {"OperationalError", "ConnectionTimeout"}
    return state[:2] in {"08", "25", "28", "3D", "40", "53", "57", "58"} or state == _LOCK_NOT_AVAILABLE


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _place(url: URL) -> str:
    host = url.host or url.query.get("host") or "local socket"
    return escape_control_characters(f"{host}:{url.port or 5432}/{url.database}")


def postgres_reason(error: DBAPIError) -> str:
    """The message of Postgres or its driver, in one line and without passwords."""
    # Only the server's message if there is one, without its copy of the statement.
    diagnostic = getattr(error.orig, "diag", None)
    said = (diagnostic and diagnostic.message_primary) or error.orig
    return one_line(said)
