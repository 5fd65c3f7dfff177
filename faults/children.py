"""Starts, kills and waits for the suite's child processes. Each writes to a log."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path

import psutil

from faults import programs
from faults.handler import PROCESS

_context = multiprocessing.get_context("forkserver")
# To start a process, multiprocessing asks all others for their exit status, which can be read only once: if
# another thread asks at the same time, it gets 255.
_asking = threading.Lock()
_numbers = count(1)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception): .*$", re.MULTILINE)


def warm_up() -> None:
    """Imports the product in the process that all children are forked from."""
    _context.set_forkserver_preload(["faults.programs"])
    child = _context.Process(target=_nothing)
    child.start()
    child.join()


class Child:
    """One process. Creating the object starts it."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = f"{arguments[0]}-{next(_numbers)}"
        self.peak_kib = 0
        self._log = log
        self._process = _context.Process(
            target=programs.run, args=(arguments, {**environment, PROCESS: self.name}, log)
        )
        with _asking:
            self._process.start()

    @property
    def running(self) -> bool:
        with _asking:
            return self._process.is_alive()

    @property
    def exit_status(self) -> int | None:
        with _asking:
            return self._process.exitcode

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it. Ask only after `wait`."""
        return self.exit_status == -signal.SIGKILL

    @property
    def last_error(self) -> str:
        """The last exception in its log, which it shares with the other children of its kind."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        found: list[str] = _EXCEPTION.findall(text)
        return found[-1] if found else "no exception in its log"

    def kill(self) -> None:
        """Sends SIGKILL to it and its children, and does not wait for their end."""
        pid = self._process.pid
        assert pid is not None
        if not self.running:
            return
        with suppress(psutil.Error):
            self.peak_kib = max(self.peak_kib, psutil.Process(pid).memory_info().rss // 1024)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # it has no process group until its setsid()
            os.kill(pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Sends SIGTERM to it alone, and does not wait for its end."""
        assert self._process.pid is not None
        if self.running:
            os.kill(self._process.pid, signal.SIGTERM)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def wait(self, deadline_seconds: float) -> bool:
        """Waits for at most `deadline_seconds`; returns whether it has ended."""
        wait([self._process.sentinel], deadline_seconds)  # reads nothing, unlike join()
        return not self.running


def _nothing() -> None:
    return None
