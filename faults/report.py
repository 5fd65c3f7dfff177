"""Counts what happens in a run, and prints the table at its end."""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from faults.faults import Fault, Kind


def say(text: str) -> None:
    """Prints one line at once, whole even if other threads print."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class _Line:
    faults: int = 0
    not_reached: int = 0
    slowest: float = 0.0


@dataclass
class Report:
    """The counts of one run. Lanes add to it from several threads. not_played: kinds, and why."""

    started: float = field(default_factory=time.monotonic)
    users: int = 0
    jobs: int = 0
    handled_again: int = 0
    ended_by_themselves: int = 0
    peak_kib: int = 0
    not_played: dict[Kind, str] = field(default_factory=dict)
    _lines: dict[Kind, _Line] = field(default_factory=lambda: defaultdict(_Line))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def played(self, fault: Fault, reached: bool, seconds: float) -> None:
        """Counts a fault, and the seconds until it was repaired. reached: whether it struck at all."""
        with self._lock:
            line = self._lines[fault.kind]
            line.faults += reached
            line.not_reached += not reached
            line.slowest = max(line.slowest, seconds)
            total = self.faults
        if total % 50 == 0 and reached:
            say(f"{self.seconds:4.0f} s: {total} faults repaired")

    @property
    def faults(self) -> int:
        return sum(line.faults for line in self._lines.values())

    @property
    def never_struck(self) -> list[Kind]:
        """The kinds that were played in vain."""
        return [kind for kind, line in self._lines.items() if not line.faults]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def show(self) -> None:
        """Prints the table."""
        say(f"{'faults':<45}{'number':>8}{'not reached':>13}{'slowest repair':>16}")
        for kind in Kind:
            if kind in self._lines:
                line = self._lines[kind]
                say(f"{kind:<45}{line.faults:>8}{line.not_reached:>13}{line.slowest:>14.1f} s")
        for kind, reason in self.not_played.items():
            say(f"{kind:<45}{'NOT PLAYED':>21}   {reason}")
        say(f"{'all':<45}{self.faults:>8}")
        say(f"users {self.users}, jobs {self.jobs}, begun again after a kill {self.handled_again}")
        say(
            f"wall time {self.seconds:.0f} s, peak RSS of a process {self.peak_kib / 1024:.0f} MiB,"
            f" workers and reconcilers that ended by themselves {self.ended_by_themselves}"
        )
