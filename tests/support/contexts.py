"""The context of a tick or a reconcile pass in this process, with a clock that the test moves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread
from typing import Any, TypeVar

import pytest
from freezegun.api import FakeDatetime

from worker_scheduler.clock import utc_now
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.runs import Run

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
"""The smallest difference between two stored times; subtracted from a bound, it gives the other side."""

_Value = TypeVar("_Value")


class HandedClock:
    """A clock that stands still until the test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, step: timedelta) -> None:
        self.now += step


@dataclass
class Requests:
    """Asks for no dispatcher, and notes each request. waits: True as in the command, False as in a task."""

    waits: bool = True
    extra: list[tuple[str, int]] = field(default_factory=list)
    continued: list[tuple[str, str]] = field(default_factory=list)

    def request_extra(self, partition_key: str, number: int) -> None:
        self.extra.append((partition_key, number))

    def continue_later(self, run: Run) -> None:
        self.continued.append((run.partition_key, run.queue))


@contextmanager
def frozen_time_in_the_ledger() -> Iterator[None]:
    """Gives the ledger the time that freezegun has set, which it can set for this process only.

    Inside the block; without freezegun the ledger has Postgres' time.
    """
    from worker_scheduler import wiring

    with pytest.MonkeyPatch.context() as patch:
        if isinstance(datetime.now(UTC), FakeDatetime):
            patch.setattr(wiring, "ledger_clock", lambda *_: utc_now)
        yield


@contextmanager
def context_at(clock: Callable[[], datetime], **settings: Any) -> Iterator[TickContext]:
    """The context of a deployed process, with `settings` changed and pauses that take no time."""
    from worker_scheduler import wiring

    with wiring.tick_context("test", lambda _: None) as context:
        yield replace(
            context,
            settings=context.settings.model_copy(update=settings),
            clock=clock,
            pause=lambda _: None,
            dispatcher_requests=Requests(),
        )


def at_once(context: TickContext, times: int, step: Callable[[TickContext], _Value]) -> list[_Value]:
    """Calls `step` in `times` threads at once, each with its own connections; returns their results."""
    barrier = Barrier(times)
    returned: list[_Value] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            with context_at(context.clock) as own:
                mine = replace(context, database=own.database, publisher=own.publisher, broker=own.broker)
                barrier.wait(30)
                returned.append(step(mine))
        except BaseException as error:  # noqa: BLE001 - a thread's error must not be lost
            raised.append(error)

    threads = [Thread(target=call) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not raised, raised
    assert len(returned) == times
    return returned
