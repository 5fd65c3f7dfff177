"""A line of `scheduler check`, and how a question to a server becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from worker_scheduler.errors import SchedulerError


class Severity(StrEnum):
    """How a line of the check begins. Only a fault changes the exit status."""

    OK = "ok"
    WARNING = "warn"
    FAULT = "FAULT"


@dataclass(frozen=True)
class Finding:
    """One line of the check. status: the exit status that it asks for; 0 unless it is a fault."""

    part: str
    text: str
    severity: Severity = Severity.OK
    status: int = 0


def fault(part: str, text: str, error: SchedulerError | type[SchedulerError]) -> Finding:
    """A fault with the exit status of an error."""
    return Finding(part, text, Severity.FAULT, error.exit_status)


def ask(part: str, question: Callable[[], str]) -> Finding:
    """What a question returns, or the error that it raises as a fault."""
    try:
        return Finding(part, question())
    except SchedulerError as error:
        return fault(part, str(error), error)


def ask_all(part: str, question: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a question, and the error that ends it as a fault."""
    try:
        yield from question()
    except SchedulerError as error:
        yield fault(part, str(error), error)
