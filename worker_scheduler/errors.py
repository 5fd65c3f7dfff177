"""The errors that an operator can cause or meet, each one line of text; not for bugs of our own."""

from __future__ import annotations

from collections.abc import Iterable


class SchedulerError(Exception):
    """Something an operator can mend: its text says what, which value, and how."""

    exit_status = 1
    outcome = "failed"


class BadInput(SchedulerError):
    """An option, an argument or a variable has a value that is not allowed. Nothing was written."""

    exit_status = 2
    outcome = "refused"


class ConfigurationError(BadInput):
    """Variables of the environment, or what they point to, are wrong; all faults at once."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class Refused(SchedulerError):
    """The tick is well formed, but a rule forbids it. It left no row and no message."""

    exit_status = 3
    outcome = "refused"


class AlreadyRunning(SchedulerError):
    """Another tick works on the same partition now; there is nothing left to do for this one."""

    exit_status = 0
    outcome = "already_running"


class StoreUnavailable(SchedulerError):
    """Postgres or the broker did not answer, or broke off; the same command again goes on."""

    exit_status = 4
    outcome = "failed"


class StoreRefused(SchedulerError):
    """Postgres answered, and would not do what was asked; the same command again meets the same answer."""

    exit_status = 4
    outcome = "failed"
