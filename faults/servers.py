"""The suite's servers: pairs of a Postgres and a Valkey, which can be restarted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from redis import Redis
from redis.exceptions import RedisError

from tests.support.databases import folder_in_memory
from tests.support.waiting import wait_until
from worker_scheduler import embedded

_RESTART_SECONDS = 30
_DATA_AND_CLIENTS = """
SELECT current_setting('data_directory'), count(*) FROM pg_stat_activity
WHERE application_name = 'worker_scheduler'
"""


@dataclass
class Servers:
    """A Postgres that loses no commit in a crash, and a Valkey."""

    database_url: str
    redis_url: str
    _restarted: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _restarted_redis: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def restart_postgres(self) -> int:
        """Shuts Postgres down as in a crash, starts it on the same port and waits until it answers.

        Returns how many connections of the product were cut off.
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
        root = os.geteuid() == 0  # Postgres refuses to run as root; it runs as the owner of its folder
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

    def restart_redis(self) -> None:
        """Kills Valkey, starts it on the same port with its last dump, and waits until it answers."""
        with Redis.from_url(self.redis_url) as redis:
            info = redis.info("server")
        server = psutil.Process(int(info["process_id"]))
        # Its command line is its title by now.
        command = [server.exe(), info["config_file"], "--port", str(info["tcp_port"])]
        folder, account, group = server.cwd(), server.uids().real, server.gids().real
        server.kill()
        # The process that started it may leave it a zombie.
        wait_until(lambda: _is_gone(server), _RESTART_SECONDS, "the end of Valkey")
        root = os.geteuid() == 0
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
            user=account if root else None,
            group=group if root else None,
            extra_groups=[] if root else None,
        )
        self._restarted_redis.append(process)
        wait_until(self._redis_answers, _RESTART_SECONDS, "Valkey after its restart")

    def stop(self) -> None:
        """Stops the restarted servers; `embedded.servers` stops the servers that it started."""
        for process in self._restarted:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        for process in self._restarted_redis:
            process.kill()  # in the background of a shell, SIGQUIT would be ignored
            process.wait()

    def _redis_answers(self) -> bool:
        try:
            with Redis.from_url(self.redis_url, socket_timeout=5) as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.database_url).close()
        except psycopg.OperationalError:
            return False
        return True


def _is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextmanager
def servers() -> Iterator[Servers]:
    """Starts a pair, and stops and removes it afterwards."""
    with embedded.servers(folder_in_memory()) as started:
        with psycopg.connect(started.database_url, autocommit=True) as connection:
            # By default the embedded Postgres loses the last commits when it is killed. This one must not.
            connection.execute("ALTER SYSTEM SET synchronous_commit = on")
            connection.execute("SELECT pg_reload_conf()")
        pair = Servers(started.database_url, started.redis_url)
        try:
            yield pair
        finally:
            pair.stop()
