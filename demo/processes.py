"""Starts, watches and stops the demo's processes; each logs to a file of its own."""

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
    """The demo cannot go on; the message says why, and ends with what was logged."""


class Processes:
    """Python processes in one folder and environment, stopped together by `stop`."""

    def __init__(
        self, home: Path, logs: Path, environment: Mapping[str, str], interruption: Interruption
    ) -> None:
        self._home = home
        self._logs = logs
        self._environment = environment
        self._interruption = interruption
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start `python -m module arguments`, and go on."""
        command = [sys.executable, "-m", module, *arguments]
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-P", leash.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._home,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches the demo, and the demo stops them in order
            )

    def run(self, name: str, module: str, *arguments: str, deadline_seconds: float) -> None:
        """Run `python -m module arguments` to its end; raises DemoError if it fails."""
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
        _let_go(process)

    def check(self) -> None:
        """Raise DemoError if a process that should be running has ended."""
        for name, process in self._running.items():
            status = process.poll()
            if status is not None:
                raise self.failure(name, f"ended with status {status}")

    def failure(self, name: str, what: str) -> DemoError:
        """What happened to a process, with the end of its log."""
        lines = self._log(name).read_text(errors="replace").splitlines()
        tail = "".join(f"\n    {line}" for line in lines[-TAIL_LINES:])
        return DemoError(f"{name} {what}; it logged last:{tail or ' nothing'}")

    def stop(self) -> None:
        """Stop all at once, and wait until they have."""
        for process in self._running.values():
            _let_go(process)
        for process in self._running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-')}.log"


def _let_go(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
