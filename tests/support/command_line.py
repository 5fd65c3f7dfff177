"""Runs the command `scheduler`, in this process or in a new one, and returns how it ended."""

import contextlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_scheduler.cli import run


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The one JSON object that `--json` prints; fails if stdout holds anything else."""
        parsed = json.loads(self.stdout)
        assert self.stdout == json.dumps(parsed) + "\n"
        assert isinstance(parsed, dict)
        return parsed

    @property
    def faults(self) -> list[str]:
        """The lines of `scheduler check` that name a fault."""
        return [line for line in self.stdout.splitlines() if line.startswith("FAULT")]

    @property
    def error(self) -> str:
        """The only line of stderr that is not a log line."""
        (line,) = self.errors
        return line

    @property
    def errors(self) -> list[str]:
        """The errors on stderr, without prefix; fails if a line is neither an error nor a log line."""
        prefix = "scheduler: "
        lines = self.stderr.splitlines()
        logged = [line for line in lines if line[:4].isdigit() and line[4] == "-"]
        errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        assert len(logged) + len(errors) == len(lines), self.stderr
        return errors


def in_this_process(*arguments: str) -> Outcome:
    """Runs `scheduler ARGUMENTS` without the cost of a process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = run(list(arguments))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def as_process(
    environment: Mapping[str, str],
    *arguments: str,
    folder: Path | None = None,
    deadline_seconds: float = 60,
) -> Outcome:
    """Runs `python -m worker_scheduler ARGUMENTS` in a process of its own."""
    return outcome_of(
        [sys.executable, "-m", "worker_scheduler", *arguments], environment, folder, deadline_seconds
    )


def outcome_of(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path | None = None,
    deadline_seconds: float = 60,
) -> Outcome:
    """Runs any command to its end, in a process of its own."""
    ended = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline_seconds,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)
