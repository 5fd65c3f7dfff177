"""What a tick and reconcile work with, in this process and on a clock that the test moves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread
from typing import Any, TypeVar

from worker_scheduler.context import TickContext

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
"""The least that two stored times can differ by: the other side of a bound."""

_Value = TypeVar("_Value")


class HandedClock:
    """A clock that stands still until the test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, step: timedelta) -> None:
        self.now += step


@contextmanager
def context_at(clock: Callable[[], datetime], **settings: Any) -> Iterator[TickContext]:
    """A context of a deployed process; `settings` stand in for variables. Its pauses take no time."""
    from worker_scheduler import wiring

    with wiring.tick_context("test", lambda _: None) as context:
        yield replace(
            context,
            settings=context.settings.model_copy(update=settings),
            clock=clock,
            pause=lambda _: None,
            call_dispatchers=lambda *_: None,
        )


def at_once(context: TickContext, times: int, step: Callable[[TickContext], _Value]) -> list[_Value]:
    """Calls `step` in as many threads at once, each with connections of its own; what they return."""
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
