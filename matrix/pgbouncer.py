"""A PgBouncer in transaction mode in front of the machine's PostgreSQL, for one row of the matrix."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from matrix.servers import DATABASE_URL, REDIS_URL, WrongServer, require_postgres, require_redis
from worker_scheduler.embedded import free_port

_DEADLINE_SECONDS = 10

# auth_query lets tests create roles. Each test has its own database, and PgBouncer keeps connections per
# database: idle ones must close soon, before they reach Postgres' max_connections.
_CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
pool_mode = transaction
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
auth_user = {user}
auth_query = SELECT usename, '' FROM pg_shadow WHERE usename = $1
max_client_conn = 500
default_pool_size = 20
server_idle_timeout = 5
logfile = {folder}/log
"""


@contextmanager
def pgbouncer() -> Iterator[Mapping[str, str]]:
    """Starts PgBouncer; yields variables that make all tests connect through it. Raises WrongServer."""
    require_postgres(DATABASE_URL, 15)
    require_redis(REDIS_URL, 7)
    program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise WrongServer("pgbouncer is not installed: apt-get install pgbouncer")
    server, port = make_url(DATABASE_URL), free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            _CONFIGURATION.format(
                host=server.host,
                port=server.port or 5432,
                listen_port=port,
                folder=folder,
                user=server.username,
            )
        )
        (folder / "users").write_text(f'"{server.username}" "{server.password or ""}"\n')
        process = subprocess.Popen([program, "--quiet", configuration], user=_account(folder))
        try:
            pooler = f"127.0.0.1:{port}"
            _wait(process, server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False))
            yield {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL, "TEST_POOLER": pooler}
        finally:
            process.terminate()
            process.wait(_DEADLINE_SECONDS)


def _account(folder: Path) -> int | None:
    """Returns the user id to run PgBouncer as, since it refuses to run as root; None keeps our own."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("nobody")
    # The folder last: once it is theirs, its other processes may put links there.
    for path in (*folder.iterdir(), folder):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return account.pw_uid


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=2, prepare_threshold=None).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise WrongServer(f"pgbouncer does not answer: {error}") from error
            time.sleep(0.05)
        else:
            return
