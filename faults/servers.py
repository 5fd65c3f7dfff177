"""The suite's servers: pairs of Postgres and Valkey, whose Postgres can be restarted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from faults.waiting import wait_until
from worker_scheduler import embedded

_RESTART_SECONDS = 30
_DATA_AND_CLIENTS = """
SELECT current_setting('data_directory'), count(*) FROM pg_stat_activity
WHERE application_name = 'worker_scheduler'
"""


@dataclass
class Servers:
    """A Postgres that keeps what it committed, and a Valkey."""

    database_url: str
    redis_url: str
    _restarted: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def restart_postgres(self) -> int:
        """Immediate shutdown, as in a crash, and start again on the same port; ends once it answers.

        Says how many connections of the product it cut off.
        """
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(_DATA_AND_CLIENTS).fetchone()
        assert row is not None
        data = Path(row[0])
        owner = data.stat()
        identification = data / "postmaster.pid"
        command = shlex.split((data / "postmaster.opts").read_text())
        os.kill(int(identification.read_text().splitlines()[0]), signal.SIGQUIT)
        for process in self._restarted:
            process.wait(_RESTART_SECONDS)
        wait_until(lambda: not identification.exists(), _RESTART_SECONDS, "the end of Postgres")
        root = os.geteuid() == 0  # Postgres refuses to be root; its folder's owner is whom it runs as
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=data,
            start_new_session=True,
            user=owner.st_uid if root else None,
            group=owner.st_gid if root else None,
            extra_groups=[] if root else None,
        )
        self._restarted.append(process)
        wait_until(self._answers, _RESTART_SECONDS, "Postgres after its restart")
        return int(row[1])

    def stop(self) -> None:
        """Stops what was restarted; the rest ends by itself."""
        for process in self._restarted:
            process.send_signal(signal.SIGQUIT)
            process.wait()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.database_url).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def servers() -> Iterator[Servers]:
    """A pair, stopped and removed afterwards."""
    with embedded.servers() as started:
        with psycopg.connect(started.database_url, autocommit=True) as connection:
            # The embedded Postgres forgets the last commits in a crash; ours is to be believed.
            connection.execute("ALTER SYSTEM SET synchronous_commit = on")
            connection.execute("SELECT pg_reload_conf()")
        pair = Servers(started.database_url, started.redis_url)
        try:
            yield pair
        finally:
            pair.stop()
