"""The errors that an operator can cause or meet, each one line of text. A bug is none of these."""

from __future__ import annotations

from collections.abc import Iterable

from worker_scheduler.outcome import Outcome


class SchedulerError(Exception):
    """Something that an operator can fix: the text says what is wrong, which value, and how to fix it."""

    exit_status = 1
    outcome = Outcome.FAILED


class BadInput(SchedulerError):
    """An option, an argument or a variable has a value that is not allowed. Nothing was written."""

    exit_status = 2
    outcome = Outcome.REFUSED


class ConfigurationError(BadInput):
    """Variables of the environment, or what they point to, are wrong. It names all faults at once."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class Refused(SchedulerError):
    """The command is well formed, but a rule forbids it. It has left no run, no job and no message; the
    history of requests has a row of it."""

    exit_status = 3
    outcome = Outcome.REFUSED


class AlreadyRunning(SchedulerError):
    """Another tick is working on the same partition, so a dry run cannot say what would be left to do."""

    exit_status = 0
    outcome = Outcome.ALREADY_RUNNING


class Interrupted(SchedulerError):
    """Ctrl-C or SIGTERM ended the command; the text says what happens to the work that it began."""

    exit_status = 130
    """128 + SIGINT, as shells have it."""


class StoreUnavailable(SchedulerError):
    """Postgres or the broker gave no answer, or the connection broke; the same command continues later."""

    exit_status = 4
    outcome = Outcome.FAILED


class StoreRefused(SchedulerError):
    """Postgres refused a statement; the same command would get the same answer."""

    exit_status = 4
    outcome = Outcome.FAILED
