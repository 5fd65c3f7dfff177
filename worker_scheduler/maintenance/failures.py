"""What a rule does about a run that fails: it goes on with the next run, and raises the first error last.

An outage is something else: it fails for every run, so it ends the rule. An error says "unavailable" for a
lock that is held for too long, too; so the servers are asked which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker_scheduler import logs
from worker_scheduler.errors import ConfigurationError, SchedulerError, StoreUnavailable
from worker_scheduler.fanout.context import TickContext

log = logs.get_logger(__name__)


@dataclass
class Failures:
    """The failures of single runs in one rule. stores_answer: False means that there is an outage."""

    stores_answer: Callable[[], bool]
    _first: SchedulerError | None = None

    @contextmanager
    def of(self, subject: str, then: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Notes an error of the block, and goes on after it. Raises StoreUnavailable if it is an outage.

        subject: what fails, usually a partition key; the error and the log begin with it. then: is called
        after a failure that is not an outage.
        """
        try:
            yield
        except SchedulerError as error:
            if isinstance(error, StoreUnavailable) and not self.stores_answer():
                raise
            then()
            named = _named(subject, error)
            if self._first is None:
                self._first = named
            else:  # the first one is logged by the pass
                log.error("reconcile left a run to a later pass", error=str(named))

    def raise_first(self) -> None:
        """Raises the first error, if there was one."""
        if self._first is not None:
            raise self._first


def postgres_answers(context: TickContext) -> Callable[[], bool]:
    """Returns a function that says whether Postgres answers and takes writes."""
    return lambda: _answers(lambda: not context.database.is_read_only())


def stores_answer(context: TickContext) -> Callable[[], bool]:
    """Returns a function that says whether Postgres and the broker answer."""
    return lambda: postgres_answers(context)() and _answers(lambda: context.broker.epoch() or True)


def _answers(ask: Callable[[], object]) -> bool:
    try:
        return bool(ask())
    except SchedulerError:
        return False


def _named(subject: str, error: SchedulerError) -> SchedulerError:
    """The same error, with what it is about: an error of the same class has the same exit status."""
    if isinstance(error, ConfigurationError):
        return ConfigurationError([f"{subject}: {fault}" for fault in error.faults])
    return type(error)(f"{subject}: {error}")
