"""Real processes of Celery and of the scheduler, each with its own log file."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.waiting import wait_until


class Process:
    """A command that can be started, signalled, and started again; all runs append to one log."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the command in a process group of its own."""
        assert not self.running
        with self._log.open("ab") as output:
            self._popen = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send(self, sent: signal.Signals) -> None:
        """Signals only the process, not its children, as a platform does."""
        os.kill(self.pid, sent)

    def kill(self) -> None:
        """Sends SIGKILL to the process and its children, and waits for its end."""
        if self._popen is not None:
            if self.running:
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()

    def wait(self, deadline_seconds: float) -> int:
        """Its exit status."""
        assert self._popen is not None
        return self._popen.wait(deadline_seconds)

    def wait_for_log(self, text: str, deadline_seconds: float = 30) -> None:
        wait_until(lambda: text in self.log() or not self.running, deadline_seconds, f"{text!r} in the log")
        assert text in self.log(), self.log()


def celery(environment: Mapping[str, str], log: Path, *arguments: str) -> Process:
    """`celery -A worker_scheduler ARGUMENTS`, not started yet."""
    command = [sys.executable, "-m", "celery", "-A", "worker_scheduler", *arguments]
    return Process(command, environment, log)


def worker_of(environment: Mapping[str, str], log: Path, queues: str, *arguments: str) -> Process:
    """A worker of these queues, in one process, not started yet."""
    return celery(
        environment,
        log,
        *("worker", "-Q", queues, "--pool", "solo", "--loglevel", "INFO"),
        *("--without-gossip", "--without-mingle", *arguments),
    )


@contextmanager
def started(process: Process) -> Iterator[Process]:
    """Starts a process; kills it and its children when the block is left."""
    process.start()
    try:
        yield process
    finally:
        process.kill()


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs. A zombie has ended; an orphan stays one until init has reaped it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
