"""Starts, watches and stops the demo's processes. Each writes its own log file."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from demo import leash
from demo.interruption import Interruption

STOP_SECONDS = leash.GRACE_SECONDS + 5.0
TAIL_LINES = 12


class DemoError(Exception):
    """The demo cannot continue. The message says why; for a process it ends with its last log lines."""


class Processes:
    """Python processes that share a folder and an environment; `stop` stops all of them."""

    def __init__(
        self, home: Path, logs: Path, environment: Mapping[str, str], interruption: Interruption
    ) -> None:
        self._home = home
        self._logs = logs
        self._environment = environment
        self._interruption = interruption
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Starts `python -m module arguments` and does not wait for it."""
        command = [sys.executable, "-m", module, *arguments]
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-P", leash.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._home,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches only the demo, which then stops all in order
            )

    def run(self, name: str, module: str, *arguments: str, deadline_seconds: float) -> None:
        """Runs `python -m module arguments` to its end. Raises DemoError if it fails or takes too long."""
        self.start(name, module, *arguments)
        process = self._running[name]
        deadline = time.monotonic() + deadline_seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise self.failure(name, f"did not end within {deadline_seconds:g} s")
            self._interruption.pause()
        if process.returncode != 0:
            raise self.failure(name, f"ended with status {process.returncode}")
        del self._running[name]
        _close_input(process)

    def check(self) -> None:
        """Raises DemoError if a process that should be running has ended."""
        for name, process in self._running.items():
            status = process.poll()
            if status is not None:
                raise self.failure(name, f"ended with status {status}")

    def failure(self, name: str, what: str) -> DemoError:
        """Returns an error that says what happened to a process, with the end of its log."""
        lines = self._log(name).read_text(errors="replace").splitlines()
        tail = "".join(f"\n    {line}" for line in lines[-TAIL_LINES:])
        return DemoError(f"{name} {what}; end of its log:{tail or ' (empty)'}")

    def stop(self) -> None:
        """Stops all processes at the same time, and waits for their end."""
        for process in self._running.values():
            _close_input(process)
        for process in self._running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-')}.log"


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
